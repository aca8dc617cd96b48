"""The CPU engine computes what veRL's engine computes: log-probs, entropy, gradients, and the agreement with
the rollout.
"""

import functools
import types

import pytest
import torch
import verl.utils.torch_functional as verl_F
from tensordict import TensorDict
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from verl import DataProto
from verl.models.transformers.monkey_patch import patch_forward_with_backends
from verl.utils import tensordict_utils as tu
from verl.utils.debug.metrics import calculate_debug_metrics
from verl.utils.metric import reduce_metrics
from verl.workers.config import FSDPActorConfig
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead
from verl.workers.utils.losses import ppo_loss
from verl.workers.utils.padding import no_padding_2_padding

import research.training.verl.packed_attention  # noqa: F401  (registers packed_sdpa)
from research.training.sizes.model import FUSED
from research.training.verl.cpu import agreement
from research.training.verl.cpu.engine import CPUFSDPEngine
from research.training.verl.cpu.equal_groups import advantages_alone

VOCABULARY = 50
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": VOCABULARY}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2}
# Prompt length and response mask of each sequence: of different lengths, with injected tokens, none sampled.
SHAPES = [
    (3, [1, 1, 0, 0, 1]),
    (7, [1]),
    (2, [0, 0, 0]),
    (4, [1, 1, 1, 0, 1, 1, 0, 1, 1]),
    (1, [1, 0, 1]),
] * 2


@pytest.fixture
def model():
    return make_model()


def make_model(**settings):
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(**SIZES | settings, attn_implementation="sdpa")).float()


@pytest.fixture
def one_rank(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def engine_of(kind, model):
    engine = object.__new__(kind)
    engine.module, engine.pad_to_length, engine.ulysses_device_mesh = model, False, None
    engine.use_ulysses_sp, engine.ulysses_sequence_parallel_size = False, 1
    engine._autocast_dtype = torch.float32
    engine.engine_config = types.SimpleNamespace(
        entropy_checkpointing=False,
        entropy_from_logits_with_chunking=False,
        use_no_sync_for_gradient_accumulation=False,
    )
    engine.compute_entropy_from_logits = verl_F.entropy_from_logits
    return engine


def nested(rows, dtype=torch.long):
    return torch.nested.as_nested_tensor(
        [torch.tensor(row, dtype=dtype) for row in rows], layout=torch.jagged
    )


def make_batch(temperature=1.0, vocabulary=VOCABULARY, **settings):
    """A batch as veRL's transfer queue hands it to the engine."""
    generator = torch.Generator().manual_seed(1)

    def tokens(count):
        return torch.randint(1, vocabulary, (count,), generator=generator).tolist()

    prompts = [tokens(prompt) for prompt, _ in SHAPES]
    responses = [tokens(len(mask)) for _, mask in SHAPES]
    whole = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
    masks = [mask for _, mask in SHAPES]
    fields = {"prompts": prompts, "responses": responses, "response_mask": masks, "loss_mask": masks}
    fields |= {"input_ids": whole, "position_ids": [list(range(len(ids))) for ids in whole]}
    columns = {name: nested(rows) for name, rows in fields.items()}
    rollout = [(-torch.rand(len(mask), generator=generator)).tolist() for mask in masks]
    columns["rollout_log_probs"] = nested(rollout, torch.float32)
    batch = TensorDict(columns, batch_size=len(SHAPES))
    settings = {
        "use_remove_padding": False,
        "temperature": temperature,
        "max_token_len_per_gpu": 40,
    } | settings
    tu.assign_non_tensor(batch, **settings)
    return batch


def loss(model_output, data, dp_group=None):
    mask = data["response_mask"].to_padded_tensor(0).bool()
    total = -(no_padding_2_padding(model_output["log_probs"], data) * mask).sum()
    if model_output.get("entropy") is not None:
        total = total - 0.1 * (no_padding_2_padding(model_output["entropy"], data) * mask).sum()
    return total, {}


def values(output, name, batch):
    padded = no_padding_2_padding(output["model_output"][name], batch)
    return padded[batch["response_mask"].to_padded_tensor(0).bool()]


def gradients(model):
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    return found


@pytest.mark.parametrize(
    "vocabulary", [3, VOCABULARY]
)  # of two tokens: sequences begin alike, some are equal
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("window", [None, 4])  # layers that do not see all tokens take no trees
def test_a_micro_batch_without_mask_equals_verls_with_mask(one_rank, temperature, vocabulary, window):
    outputs, grads = [], []
    model = make_model(use_sliding_window=bool(window), sliding_window=window, max_window_layers=1)
    for kind in (FSDPEngineWithLMHead, CPUFSDPEngine):
        batch = make_batch(temperature, vocabulary, calculate_entropy=True)
        value, output = engine_of(kind, model).forward_step(batch, loss, forward_only=False)
        value.backward()
        outputs.append({name: values(output, name, batch) for name in ("log_probs", "entropy")})
        grads.append(gradients(model))
        inputs, _ = engine_of(kind, model).prepare_model_inputs(batch)
        if kind is FSDPEngineWithLMHead:
            assert inputs["attention_mask"].eq(0).any(), "the batch has no padding: nothing is compared"
        elif not window:
            tokens = inputs["prefix_tree"].added[:-1]
            assert (sum(tokens) < len(batch["input_ids"].values())) == (vocabulary == 3)
        assert ("prefix_tree" in inputs) == (kind is CPUFSDPEngine and not window)
    for name in outputs[0]:
        torch.testing.assert_close(outputs[1][name], outputs[0][name], atol=1e-5, rtol=1e-5)
    for name in grads[0]:
        torch.testing.assert_close(grads[1][name], grads[0][name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "packed_sdpa", "eager"])
@pytest.mark.parametrize("window", [None, 4])
def test_packed_equals_padded_and_trees(one_rank, attention, window):
    """veRL's own engine with use_remove_padding, as on a GPU; its entropy is of all tokens alike."""
    outputs, grads = [], []
    model = make_model(use_sliding_window=bool(window), sliding_window=window, max_window_layers=1)
    for kind, packed in (
        (FSDPEngineWithLMHead, False),
        (FSDPEngineWithLMHead, True),
        (CPUFSDPEngine, True),
        (CPUFSDPEngine, False),
    ):
        model.set_attn_implementation(attention if packed else "sdpa")
        batch = make_batch(0.7, 3, calculate_entropy=True, use_remove_padding=packed)
        output = engine_of(kind, model).forward_backward_batch(batch, loss)
        assert len(output["loss"]) > 1
        outputs.append(sum(output["loss"]))
        grads.append(gradients(model))
    assert outputs == pytest.approx([outputs[0]] * len(outputs), rel=1e-5)
    for other in grads[1:]:
        for name, values in grads[0].items():
            torch.testing.assert_close(other[name], values, atol=1e-4, rtol=1e-4)


WIDTH = {"head_dim": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


@pytest.mark.parametrize(
    ("kind", "settings", "model_class"),
    [
        (Qwen2Config, {}, Qwen2ForCausalLM),
        (Qwen2Config, {"tie_word_embeddings": True}, Qwen2ForCausalLM),
        (Qwen3Config, WIDTH, Qwen3ForCausalLM),
        (Qwen3MoeConfig, WIDTH | EXPERTS, Qwen3MoeForCausalLM),
        (LlamaConfig, {}, LlamaForCausalLM),
        (MistralConfig, {}, MistralForCausalLM),
        (Gemma3TextConfig, WIDTH | {"sliding_window": 4}, Gemma3ForCausalLM),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_fused_log_probs_are_those_of_the_logits(one_rank, monkeypatch, kind, settings, model_class):
    """Of every kind for which the gpu profile takes them: log-probs, entropy, gradients, packed."""
    assert kind.model_type in FUSED
    monkeypatch.setattr(model_class, "forward", model_class.forward)  # veRL replaces it
    outputs, grads = [], []
    for fused in (False, True):
        torch.manual_seed(0)
        model = model_class(kind(**SIZES | settings, attn_implementation="packed_sdpa")).float()
        if fused:
            patch_forward_with_backends(model, use_fused_kernels=True, fused_kernels_backend="torch")
        batch = make_batch(0.7, calculate_entropy=True, use_remove_padding=True, use_fused_kernels=fused)
        value, output = engine_of(FSDPEngineWithLMHead, model).forward_step(batch, loss, forward_only=False)
        value.backward()
        outputs.append({name: values(output, name, batch) for name in ("log_probs", "entropy")})
        grads.append(gradients(model))
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(grads[1], grads[0], atol=1e-4, rtol=1e-4)


def test_what_needs_all_logits_takes_verls_path(model, one_rank):
    batch = make_batch(calculate_sum_pi_squared=True)
    _, output = engine_of(CPUFSDPEngine, model).forward_step(batch, None, forward_only=True)
    assert output["model_output"]["sum_pi_squared"].values().gt(0).all()
    assert output["model_output"]["log_probs"].values().lt(0).all()


def test_micro_batches_of_like_lengths_come_back_in_order(model, one_rank):
    batch = make_batch()
    engine = engine_of(CPUFSDPEngine, model)
    _, whole = engine.forward_step(batch, None, forward_only=True)
    parts = engine.forward_backward_batch(make_batch(), None, forward_only=True)
    torch.testing.assert_close(values(parts, "log_probs", batch), values(whole, "log_probs", batch))
    assert 1 < len(parts["loss"]) <= len(SHAPES)


def test_agreement_is_what_verl_computes_of_the_same_numbers(model, one_rank):
    """In several micro-batches of an update, while the weights are those of the rollout; not after."""
    engine, batch = engine_of(CPUFSDPEngine, model), make_batch()
    engine.weights_are_the_rollouts = True
    metrics = engine.forward_backward_batch(make_batch(), loss)["metrics"]
    found = agreement.statistics(reduce_metrics(metrics))
    _, whole = engine.forward_step(batch, None, forward_only=True)
    padded = batch.select("responses", "response_mask", "rollout_log_probs").to_padded_tensor(0.0)
    padded["old_log_probs"] = no_padding_2_padding(whole["model_output"]["log_probs"], batch)
    expected = calculate_debug_metrics(DataProto(batch=padded))
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name] == pytest.approx(float(expected[name]), abs=1e-5), name
    engine.weights_are_the_rollouts = False
    assert not engine.forward_backward_batch(make_batch(), loss)["metrics"]


@pytest.fixture
def actor_loss():
    """veRL's own loss of the actor, without KL and entropy terms."""
    config = FSDPActorConfig(strategy="fsdp2", rollout_n=1, use_dynamic_bsz=True, ppo_mini_batch_size=10)
    return functools.partial(ppo_loss, config=config)


def updated(model, loss_function, advantages, skip):
    """Gradients and metrics of one update; a zero is a sample of a question with equal rewards."""
    batch = make_batch(skip_equal_groups=skip, global_batch_size=len(SHAPES))
    pairs = zip(SHAPES, advantages, strict=True)
    batch["advantages"] = nested([[value] * len(mask) for (_, mask), value in pairs], torch.float32)
    batch["old_log_probs"] = batch["rollout_log_probs"]
    output = engine_of(CPUFSDPEngine, model).forward_backward_batch(batch, loss_function)
    return gradients(model), reduce_metrics(output["metrics"]), len(output["loss"])


ADVANTAGES = [1.0, 0, 0, -0.5, 0, 0, 0.7, 0, 0, 0]


def test_samples_of_equal_rewards_add_nothing_to_an_update(model, one_rank, actor_loss):
    whole, metrics, batches = updated(model, actor_loss, ADVANTAGES, skip=False)
    left, fewer, rest = updated(model, actor_loss, ADVANTAGES, skip=True)
    assert rest < batches, "nothing was left out: nothing is compared"
    for name in whole:
        torch.testing.assert_close(left[name], whole[name], atol=1e-6, rtol=1e-5)
    assert fewer["actor/pg_loss"] == pytest.approx(metrics["actor/pg_loss"], abs=1e-6)
    # Of tokens whose distribution is nearly even: the mean of some of them is close to that of all.
    assert fewer["actor/entropy_loss"] == pytest.approx(metrics["actor/entropy_loss"], rel=0.05)


def test_an_update_without_any_advantage_has_a_gradient_of_zero(model, one_rank, actor_loss):
    left, _, batches = updated(model, actor_loss, [0.0] * len(SHAPES), skip=True)
    assert batches == 1 and all(each.eq(0).all() for each in left.values())


def test_nothing_is_left_out_where_a_kl_term_needs_it(model, one_rank, actor_loss):
    assert advantages_alone(actor_loss)
    for change in ({"use_kl_loss": True}, {"entropy_coeff": 0.01}):
        config = types.SimpleNamespace(**{"use_kl_loss": False, "entropy_coeff": 0, **change})
        assert not advantages_alone(functools.partial(ppo_loss, config=config))
    assert not advantages_alone(loss)
