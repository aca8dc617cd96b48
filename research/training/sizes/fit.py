"""Settings that follow from a model's size and the machine, and the reasons why a model does not fit."""

import importlib.util
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import psutil
from omegaconf import DictConfig, OmegaConf

from research.datasets.hub import size_text
from research.training.run.options import RecipeOptions, gpu_memory
from research.training.sizes.memory import (
    GB,
    LOGITS_CPU,
    SINGLE,
    Part,
    activations,
    logits,
    number_bytes,
    on_cpu,
    on_gpus,
    states,
    token_budget,
    total,
)
from research.training.sizes.model import (
    ATTENTION_KEY,
    ModelSizes,
    adapter_faults,
    model_sizes,
    packing_faults,
)

GIB, MIB = 1 << 30, 1 << 20
TINY = 10_000_000  # parameters; a larger model wants other settings than the tiny policies
LOGITS_BYTES = 4 * GB  # of a micro-batch on a CPU
SHARED_MEMORY = Path("/dev/shm")
ASSUMED_CARD = 80  # GB of a GPU that is not there
HEADROOM = 0.9  # of a card; the rest is fragments
MOST_WEIGHTS = 0.75  # of vLLM's share of a card; the rest is for keys and values
TOKENS_STEP, MOST_TOKENS = 1024, 32 * 1024
FEWER_TOKENS = "use a larger card, a shorter data.max_response_length or a smaller --model"
UTILIZATION = "actor_rollout_ref.rollout.gpu_memory_utilization"
SEARCHED, INDEX_DEVICE = "retrieval service: index", "--index-device of --serve-args"
SEQUENCE_PARALLEL = "actor_rollout_ref.actor.ulysses_sequence_parallel_size"
FUSED_KEY = "actor_rollout_ref.model.use_fused_kernels"
ROLLOUT, STREAMED = "actor_rollout_ref.rollout", "actor_rollout_ref.actor.fsdp_config.offload_policy"
BUDGETS = (
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu",
    "actor_rollout_ref.ref.log_prob_max_token_len_per_gpu",
    f"{ROLLOUT}.log_prob_max_token_len_per_gpu",
)


@dataclass(frozen=True)
class Fit:
    """What a training takes, and why it cannot run here, one line each; `card` is None on a CPU."""

    parts: tuple[Part, ...] = ()
    card: int | None = None
    faults: tuple[str, ...] = ()

    @property
    def main_memory(self) -> int:
        """Bytes of the machine's memory that it takes."""
        return total(self.parts, "main")


def fit_to_model(
    options: RecipeOptions, model: str | None, config: DictConfig, index: int = 0, on_cards: int = 0
) -> Fit:
    """Adapt the sizes of a composed configuration to a model; None: the tiny policy.

    `index`: bytes of main memory taken by the index that the run searches; `on_cards`: of a node's GPUs.
    """
    if model is None:
        return Fit()
    try:
        sizes = model_sizes(model)
    except ValueError as error:
        return Fit(faults=(str(error),))
    given = {each.lstrip("+").partition("=")[0] for each in options.overrides}
    if FUSED_KEY not in given:
        config.actor_rollout_ref.model.use_fused_kernels &= sizes.fused
    memory = psutil.virtual_memory().total
    each = on_cards // config.trainer.n_gpus_per_node
    searched = (Part(SEARCHED, each, each, index),) if index else ()
    if options.on_cpu:
        _note(options, sizes, config)
        set_sizes(config, sizes, memory - index)
        parts = (*on_cpu(config, sizes), *searched)
        return Fit(parts, None, tuple(_faults_on_cpu(model, config, sizes, parts, memory)))
    card = options.gpu_memory * GB if options.gpu_memory else min(gpu_memory(), default=ASSUMED_CARD * GB)
    set_for_card(config, sizes, card, given, each)
    parts = (*on_gpus(config, sizes, card), *searched)
    return Fit(parts, card, tuple(_faults_on_gpus(model, config, sizes, parts, card, memory)))


def _faults_of_model(model: str, config: DictConfig, sizes: ModelSizes) -> Iterator[str]:
    """Faults of the kind of model, on any hardware."""
    longest, section = _longest(config), config.actor_rollout_ref.model
    if section.use_remove_padding:
        attention = OmegaConf.select(config, ATTENTION_KEY) or "sdpa"
        yield from (f"--model: {model}: {fault}" for fault in packing_faults(model, attention))
    if section.lora_rank:
        named = section.target_modules
        faults = adapter_faults(model, named if isinstance(named, str) else [*named])
        yield from (f"--model: {model}: {fault}" for fault in faults)
    if section.use_fused_kernels and not sizes.fused:
        yield f"{FUSED_KEY}: veRL's fused log-probs are not those of {model}; leave it out"
    if sizes.positions and sizes.positions < longest:
        yield (
            f"--model: {model} knows {sizes.positions} positions, data.max_prompt_length and "
            f"data.max_response_length come to {longest}"
        )


def _longest(config: DictConfig) -> int:
    """Tokens of the longest sequence."""
    return int(config.data.max_prompt_length + config.data.max_response_length)


# ------------------------------------------------------------------------------------------ on a CPU


def _note(options: RecipeOptions, sizes: ModelSizes, config: DictConfig) -> None:
    if sizes.parameters > TINY and options.policy == "tiny":
        click.echo(
            f"note: this run uses a learning rate of {config.actor_rollout_ref.actor.optim.lr:g}, the prompt "
            f'"{config.research.prompt}", and the limits and lengths of the CPU profile, which are meant for '
            "a tiny policy; docs/cpu.md says what another model needs"
        )


def set_sizes(config: DictConfig, sizes: ModelSizes, memory: int) -> None:
    """Buffers, cache and micro-batches of the cpu profile. `memory`: bytes of the machine."""
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    rollout.max_model_len = min(rollout.max_model_len, sizes.positions or rollout.max_model_len)
    engine, bucket = rollout.checkpoint_engine, -(-sizes.largest * SINGLE // MIB)
    engine.update_weights_bucket_megabytes = max(engine.update_weights_bucket_megabytes, bucket)
    tokens = LOGITS_BYTES // (LOGITS_CPU * sizes.vocabulary)
    actor.ppo_max_token_len_per_gpu = min(actor.ppo_max_token_len_per_gpu, max(tokens, rollout.max_model_len))
    # Room for all sequences at once, or half of what the model leaves; for one sequence in any case.
    sequence = sizes.cached * number_bytes(rollout.dtype) * rollout.max_model_len
    environment = config.ray_kwargs.ray_init.runtime_env.env_vars
    others = total(on_cpu(config, sizes), "main") - _cache(config)
    cache = -(-max(sequence, min(rollout.max_num_seqs * sequence, (memory - others) // 2)) // GIB)
    environment.VLLM_CPU_KVCACHE_SPACE = str(max(int(environment.VLLM_CPU_KVCACHE_SPACE), cache))


def _cache(config: DictConfig) -> int:
    return int(config.ray_kwargs.ray_init.runtime_env.env_vars.VLLM_CPU_KVCACHE_SPACE) * GIB


def _faults_on_cpu(
    model: str, config: DictConfig, sizes: ModelSizes, parts: tuple[Part, ...], memory: int
) -> Iterator[str]:
    rollout = config.actor_rollout_ref.rollout
    yield from _faults_of_model(model, config, sizes)
    needed = total(parts, "main")
    if needed > memory:
        yield (
            f"memory: training {model} takes about {size_text(needed)}, {size_text(_cache(config))} of it "
            f"for keys and values (VLLM_CPU_KVCACHE_SPACE); this machine has {size_text(memory)}"
        )
    bucket = rollout.checkpoint_engine.update_weights_bucket_megabytes * MIB
    free = psutil.disk_usage(str(SHARED_MEMORY)).free if SHARED_MEMORY.is_dir() else bucket
    if free < bucket:
        yield (
            f"shared memory: new weights pass through {SHARED_MEMORY} in pieces of {size_text(bucket)}, "
            f"{size_text(free)} are free there (docker run --shm-size)"
        )


# ------------------------------------------------------------------------------------------ on GPUs


def set_for_card(
    config: DictConfig, sizes: ModelSizes, card: int, given: Collection[str], taken: int = 0
) -> None:
    """How vLLM is split, where the actor's states are kept, and how many tokens are trained on at once.

    Args:
        card: bytes of a GPU.
        given: keys that the user set; they stay.
        taken: bytes of each GPU that the retrieval service holds.
    """

    def choose(key: str, value: Any) -> None:
        if key not in given:
            OmegaConf.update(config, key, value)

    if importlib.util.find_spec("flash_attn"):
        choose(ATTENTION_KEY, "flash_attention_2")
    node = config.trainer.n_gpus_per_node
    splits = [each for each in range(1, node + 1) if node % each == 0 and _splits(sizes, each)]
    fitting = [each for each in splits if _share_of_weights(config, sizes, card, each) <= MOST_WEIGHTS]
    choose(f"{ROLLOUT}.tensor_model_parallel_size", min(fitting, default=splits[-1]))
    longest = _longest(config)
    for streamed in (False, True):  # layer by layer out of main memory, where they do not fit: slower
        choose(STREAMED, streamed)
        if (tokens := _most_tokens(config, sizes, card, taken)) >= longest:
            break
    for key in BUDGETS:
        choose(key, max(longest, min(MOST_TOKENS, tokens // TOKENS_STEP * TOKENS_STEP)))


def _splits(sizes: ModelSizes, parts: int) -> bool:
    """Whether vLLM can split a model; it may also repeat key-value heads."""
    key_values = sizes.key_value_heads
    shared = key_values % parts == 0 or parts % max(key_values, 1) == 0
    return sizes.heads % parts == 0 and sizes.intermediate % parts == 0 and shared


def _faults_of_keys(model: str, config: DictConfig, sizes: ModelSizes) -> Iterator[str]:
    """The user's values that veRL or vLLM would refuse only after loading the models."""
    yield from _faults_of_model(model, config, sizes)
    section, node = config.actor_rollout_ref, config.trainer.n_gpus_per_node
    tokens, split, rank = (
        token_budget(config),
        section.rollout.tensor_model_parallel_size,
        section.model.lora_rank,
    )
    if tokens < (longest := _longest(config)):
        yield f"{BUDGETS[0]}: {tokens} tokens, and the longest sequence may have {longest}"
    if node % split or not _splits(sizes, split):
        yield (
            f"{ROLLOUT}.tensor_model_parallel_size: {split} does not divide the {node} GPUs of a node, the "
            f"{sizes.heads} heads of {model}, its {sizes.key_value_heads} key-value heads and its "
            f"intermediate size, {sizes.intermediate}"
        )
    attention = OmegaConf.select(config, ATTENTION_KEY)
    actor = section.actor
    parallel = max(each.ulysses_sequence_parallel_size for each in (actor, actor.fsdp_config))
    if parallel > 1 and attention != "flash_attention_2":
        yield (
            f"{SEQUENCE_PARALLEL}: {attention} attends to the part of a sequence that a GPU has; it needs "
            "flash_attention_2"
        )
    if rank > sizes.hidden:
        yield f"--lora-rank: {rank} is above the hidden size of {model}, {sizes.hidden}"


def _most_tokens(config: DictConfig, sizes: ModelSizes, card: int, taken: int) -> int:
    """How many tokens of a micro-batch fit beside the parts that do not depend on them."""
    each = activations(config, sizes) + logits(config, sizes)[0]
    fixed = total(on_gpus(config, sizes, card), "update") - token_budget(config) * each
    return max(0, int(HEADROOM * card - taken - fixed) // each)


def _share_of_weights(config: DictConfig, sizes: ModelSizes, card: int, split: int) -> float:
    """The share of vLLM's memory on a card that its weights fill."""
    rollout = config.actor_rollout_ref.rollout
    weights = number_bytes(rollout.dtype) * sizes.parameters / split
    return weights / (rollout.gpu_memory_utilization * card)


def _remedy(config: DictConfig, sizes: ModelSizes) -> str:
    """What helps if learning does not fit: states can be spread or offloaded, a sequence cannot."""
    words = [] if token_budget(config) <= _longest(config) else [f"lower {BUDGETS[0]}"]
    if not config.actor_rollout_ref.actor.fsdp_config.offload_policy:
        words += ["use more GPUs", f"give {STREAMED}=true"]
        words += [] if config.actor_rollout_ref.model.lora_rank else ["give --lora-rank 32"]
    return "; or ".join([*words, FEWER_TOKENS])


def _faults_on_gpus(
    model: str, config: DictConfig, sizes: ModelSizes, parts: tuple[Part, ...], card: int, memory: int
) -> Iterator[str]:
    section = config.actor_rollout_ref
    split = section.rollout.tensor_model_parallel_size
    yield from _faults_of_keys(model, config, sizes)
    share, others = _share_of_weights(config, sizes, card, split), ["use more GPUs", "take a smaller --model"]
    others += [f"leave out {INDEX_DEVICE}"] if any(p.update for p in parts if p.what == SEARCHED) else []
    own = int(section.rollout.gpu_memory_utilization * card)  # another share helps if the weights fit then
    fits = share * own <= HEADROOM * (card - total(parts, "rollout") + own)
    if share > HEADROOM:
        remedy = "; or ".join([*([f"raise {UTILIZATION}"] if fits else []), *others])
        yield f"GPU memory: vLLM's weights of {model} fill its share of {split} GPU(s): {remedy}"
    # Even where its states stay in main memory, FSDP2 loads the model through the card.
    loaded = states(config, sizes)[0] // (config.trainer.n_gpus_per_node * config.trainer.nnodes)
    if section.actor.fsdp_config.offload_policy and loaded > HEADROOM * card:
        yield f"GPU memory: loading {model} takes {size_text(loaded)} of each GPU: use more GPUs"
    loading = config.trainer.n_gpus_per_node * SINGLE * sizes.parameters
    if sizes.tied and loading > memory:
        yield (
            f"memory: loading {model} takes about {size_text(loading)} of main memory, there are "
            f"{size_text(memory)}: its embeddings are shared, so each GPU's process reads all of it"
        )
    fewer = "; or ".join([_remedy(config, sizes), *others[2:]])
    smaller = f"lower {UTILIZATION}" if fits else "; or ".join(others)
    for phase, doing, remedy in (("update", "learning", fewer), ("rollout", "sampling", smaller)):
        if (need := total(parts, phase)) > card:
            yield (
                f"GPU memory: {doing} with {model} takes about {size_text(need)} of each GPU, there are "
                f"{size_text(card)}: {remedy}"
            )
    if (need := total(parts, "main")) > memory:
        yield f"memory: the run takes about {size_text(need)} of main memory, there are {size_text(memory)}"
