"""Low-rank adapters on a CPU: the rollout gets whole weights with the adapters in them, unrounded; export."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from stack import ROOT, RecipeRun
from test_cpu_engine import make_model
from test_cpu_engine import one_rank as one_rank
from transformers import AutoModelForCausalLM
from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig

from benchmarks.references.model import byte_tokenizer
from research.training.run_files import read_trajectories, trajectory_path
from research.training.verl.cpu.engine import CPUFSDPEngine

SDPA = {"override_config": {"attn_implementation": "sdpa"}, "enable_gradient_checkpointing": False}


@pytest.fixture
def small_model(tmp_path: Path) -> str:
    """A tiny model in a folder."""
    make_model(vocab_size=300).save_pretrained(tmp_path / "policy")
    byte_tokenizer().save_pretrained(tmp_path / "policy")
    return str(tmp_path / "policy")


@pytest.fixture
def engine(one_rank: None, small_model: str) -> CPUFSDPEngine:
    """Of a model whose adapters have learned something."""
    precision = {"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"}
    model = HFModelConfig(
        path=small_model, use_remove_padding=False, lora_rank=4, lora={"merge": True}, **SDPA
    )
    sharding = FSDPEngineConfig(
        strategy="fsdp2", model_dtype="fp32", mixed_precision=precision, use_torch_compile=False
    )
    engine = CPUFSDPEngine(model, sharding, FSDPOptimizerConfig(lr=1e-3, total_training_steps=1), None)
    engine.initialize()
    torch.manual_seed(0)
    for name, weight in engine.module.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    return engine


def test_the_rollouts_weights_hold_the_adapters(engine: CPUFSDPEngine, small_model: str) -> None:
    base = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32)
    ids = torch.arange(3, 40)[None]
    expected = engine.module(input_ids=ids).logits
    assert not torch.allclose(expected, base(input_ids=ids).logits, atol=1e-2), "the adapters do nothing"
    weights, adapters = engine.get_per_tensor_param()
    assert adapters is None
    base.load_state_dict({name: weight.clone() for name, weight in weights}, strict=False)
    torch.testing.assert_close(base(input_ids=ids).logits, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(engine.module(input_ids=ids).logits, expected)


@pytest.fixture(scope="module")
def trained(policy: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one step with adapters, in another environment than that of questions."""
    folder = tmp_path_factory.mktemp("claims")
    sizes = ("--passages", "600", "--train", "8", "--validation", "2", "--test", "2")
    world = [sys.executable, "-m", "research.datasets.mini.claims", "--out", folder / "world", *sizes]
    subprocess.run(world, check=True, cwd=ROOT)
    files = {"--questions": "train.claims", "--validation": "validation.claims", "--corpus": "corpus"}
    words = [word for name, file in files.items() for word in (name, str(folder / f"world/{file}.jsonl"))]
    words += ["--model", policy, "--lora-rank", "8", "--index", "bm25", "--steps", "1"]
    words += ["trainer.val_before_train=false", "trainer.test_freq=-1", "research.keep=last"]
    optim = "actor_rollout_ref.actor.optim"
    # A rate and a reward with which one step of such a policy changes something.
    words += [f"{optim}.lr=1e-2", f"{optim}.lr_warmup_steps=0", "research.environment=fact_verification"]
    words += ['research.reward={f1_format: 1.0, "few_searches:score": {weight: 0.01, most: 6}}']
    with RecipeRun(folder / "run", *words) as run:
        assert run.wait() == 0, run.text()
        run.assert_nothing_left()
    assert run.step_rows()[1]["training/rollout_probs_diff_mean"] <= 1e-5
    return folder / "run"


@pytest.mark.launch
@pytest.mark.timeout(1800)
def test_a_step_with_adapters_is_exported_merged_and_as_adapter(policy: str, trained: Path) -> None:
    """Base and adapter together are the merged policy, which is not the base."""
    exported, ids = trained / "policy", torch.arange(3, 40)[None]
    before, merged = (AutoModelForCausalLM.from_pretrained(path) for path in (policy, exported))
    plain, expected = (model(input_ids=ids).logits.log_softmax(-1) for model in (before, merged))
    assert not torch.allclose(plain, expected, atol=1e-3), "the step changed nothing"
    adapted = PeftModel.from_pretrained(before, exported / "lora_adapter")(input_ids=ids).logits.log_softmax(
        -1
    )
    torch.testing.assert_close(adapted, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.launch
@pytest.mark.timeout(1800)
def test_claims_are_verified_and_reported_by_label(trained: Path) -> None:
    claims = list(read_trajectories(trajectory_path(trained, 1, "train")))
    labels = {"train_supported", "train_refuted", "train_not_enough_info"}
    assert claims and {each.metadata["data_source"] for each in claims} <= labels
