"""Sizes of the CPU profile that follow the model: buffers, cache and micro-batches of a tiny policy are too
small or too large for another one.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import psutil
from omegaconf import DictConfig

from research.datasets.hub import size_text
from research.training.run.options import Options

GB, GIB, MIB = 10**9, 1 << 30, 1 << 20
FLOAT = 4  # the CPU profile computes in float32
# Weights, gradients and both Adam moments of the actor, and the weights of the rollout.
COPIES = 5
# Ray, the rollout engine and the trainer without any model.
BASE_BYTES = 3 * GB
# Logits of a micro-batch, their log-softmax, and the gradients of both.
LOGITS_BYTES, LOGITS_COPIES = 4 * GB, 4
TINY = 10_000_000  # parameters; what is larger wants other settings than the tiny policies
SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class ModelSizes:
    """Counts of numbers: of the model, of its largest tensor, of a token's keys and values, of a token's
    logits; and the positions it knows (None: any).
    """

    parameters: int
    largest: int
    cached: int
    vocabulary: int
    positions: int | None


def fit_to_model(options: Options, config: DictConfig) -> list[str]:
    """Let the sizes of the configuration follow a model of the user's; the reasons why it cannot be trained
    here, one line each.
    """
    if options.hardware != "cpu" or options.model is None:
        return []
    try:
        sizes = model_sizes(options.model)
    except (OSError, ValueError) as error:
        away = isinstance(error, OSError) and not Path(options.model).exists()
        why = "not to be found on the hub from here" if away else str(error).splitlines()[0]
        return [f"--model: {options.model}: {why}"]
    if sizes.parameters > TINY:
        click.echo(_note(config))
    memory = psutil.virtual_memory().total
    set_sizes(config, sizes, memory)
    return _problems(options.model, config, sizes, memory)


def _note(config: DictConfig) -> str:
    return (
        f"note: a learning rate of {config.actor_rollout_ref.actor.optim.lr:g}, the prompt "
        f'"{config.research.prompt}", limits and lengths are what this run takes; those of the CPU profile '
        "are a tiny policy's, docs/cpu.md says what another model wants"
    )


def model_sizes(model: str) -> ModelSizes:
    """From the model's config.json, in its folder or on the hub; the weights are not read.

    Raises:
        OSError, ValueError: there is no such model, or transformers does not know its kind.
    """
    import torch  # seconds, and only for a model of the user's
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    with torch.device("meta"):
        parameters = [each.numel() for each in AutoModelForCausalLM.from_config(config).parameters()]
    text: Any = config.get_text_config()
    heads = getattr(text, "num_attention_heads", 0)  # none: no cache that grows with the tokens
    dimension = getattr(text, "head_dim", None) or text.hidden_size // max(heads, 1)
    cached = 2 * text.num_hidden_layers * (getattr(text, "num_key_value_heads", None) or heads) * dimension
    positions = getattr(text, "max_position_embeddings", None)
    return ModelSizes(sum(parameters), max(parameters), cached, text.vocab_size, positions)


def set_sizes(config: DictConfig, sizes: ModelSizes, memory: int) -> None:
    """Let the sizes of a composed configuration follow the model. `memory`: bytes of the machine."""
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    rollout.max_model_len = min(rollout.max_model_len, sizes.positions or rollout.max_model_len)
    engine, bucket = rollout.checkpoint_engine, -(-sizes.largest * FLOAT // MIB)
    engine.update_weights_bucket_megabytes = max(engine.update_weights_bucket_megabytes, bucket)
    tokens = LOGITS_BYTES // (LOGITS_COPIES * FLOAT * sizes.vocabulary)
    actor.ppo_max_token_len_per_gpu = min(actor.ppo_max_token_len_per_gpu, max(tokens, rollout.max_model_len))
    environment = config.ray_kwargs.ray_init.runtime_env.env_vars
    cache = max(int(environment.VLLM_CPU_KVCACHE_SPACE), _cache_gib(sizes, rollout, memory))
    environment.VLLM_CPU_KVCACHE_SPACE = str(cache)


def _cache_gib(sizes: ModelSizes, rollout: Any, memory: int) -> int:
    """Room for all sequences at once, or half of what the model leaves; for one sequence in any case."""
    sequence = sizes.cached * FLOAT * rollout.max_model_len
    room = (memory - memory_needed(sizes)) // 2
    return -(-max(sequence, min(rollout.max_num_seqs * sequence, room)) // GIB)


def memory_needed(sizes: ModelSizes) -> int:
    """Bytes of main memory that training the model takes, without the cache of keys and values."""
    return BASE_BYTES + FLOAT * (COPIES * sizes.parameters + 2 * sizes.largest)


def _problems(model: str, config: DictConfig, sizes: ModelSizes, memory: int) -> list[str]:
    found, rollout = [], config.actor_rollout_ref.rollout
    longest = config.data.max_prompt_length + config.data.max_response_length
    if rollout.max_model_len < longest:
        found.append(
            f"--model: {model} knows {sizes.positions} positions, data.max_prompt_length and "
            f"data.max_response_length come to {longest}"
        )
    cache = int(config.ray_kwargs.ray_init.runtime_env.env_vars.VLLM_CPU_KVCACHE_SPACE) * GIB
    needed = memory_needed(sizes) + cache
    if needed > memory:
        found.append(
            f"memory: to train {model} takes about {size_text(needed)}, {size_text(cache)} of it for keys "
            f"and values (VLLM_CPU_KVCACHE_SPACE); this machine has {size_text(memory)}"
        )
    bucket = rollout.checkpoint_engine.update_weights_bucket_megabytes * MIB
    free = psutil.disk_usage(str(SHARED_MEMORY)).free if SHARED_MEMORY.is_dir() else bucket
    if free < bucket:
        found.append(
            f"shared memory: new weights pass {SHARED_MEMORY} in pieces of {size_text(bucket)}, "
            f"{size_text(free)} are free there (docker run --shm-size)"
        )
    return found
