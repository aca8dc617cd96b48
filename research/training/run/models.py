"""What a model of the user's is, before it is loaded: whether its folder is whole, and how large it is.

The buffers, cache and micro-batches of the CPU profile are those of a tiny policy; for another model they
follow its size.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import psutil
from omegaconf import DictConfig

from research.datasets.hub import size_text
from research.training.run.options import RecipeOptions

# Any of them makes a tokenizer of transformers.
TOKENIZERS = (
    *("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "*.tiktoken"),
    *("sentencepiece.bpe.model", "tekken.json"),
)
WEIGHT_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
DESCRIPTIONS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")

GIB, MIB = 1 << 30, 1 << 20
NUMBER_BYTES = 4  # the CPU profile computes in float32
COPIES = 5  # weights, gradients and both Adam moments of the actor, and the weights of the rollout
BASE_BYTES = 3 * 10**9  # Ray, the rollout engine and the trainer without any model
# Logits of a micro-batch, their log-softmax, and the gradients of both.
LOGITS_BYTES, LOGITS_COPIES = 4 * 10**9, 4
TINY = 10_000_000  # parameters; a larger model wants other settings than the tiny policies
SHARED_MEMORY = Path("/dev/shm")


# ------------------------------------------------------------------------------------- whole or not


def folder_faults(folder: Path) -> Iterator[str]:
    """What is wrong with the model in a folder, to stand in brackets. Weights are not read."""
    if not (folder / "config.json").is_file():
        yield "config.json is missing"
        return
    descriptions: dict[str, dict[str, Any]] = {}
    for name in (*DESCRIPTIONS, *WEIGHT_INDEXES):
        try:
            if (folder / name).is_file():
                descriptions[name] = json.loads((folder / name).read_text(encoding="utf-8"))
                descriptions[name].items()
        except (ValueError, OSError, RecursionError, AttributeError) as error:
            yield f"{name} is damaged: {error}"
            descriptions.pop(name, None)
    for name in ("config.json", "generation_config.json"):
        yield from _token_faults(name, descriptions.get(name, {}))
    if not any(path.is_file() for pattern in TOKENIZERS for path in folder.glob(pattern)):
        yield "its tokenizer is missing: no tokenizer.json, tokenizer.model or vocabulary"
    for name in WEIGHT_INDEXES:
        shards = descriptions.get(name, {}).get("weight_map", {})
        names = set(map(str, shards.values())) if isinstance(shards, dict) else set()
        if missing := sorted(shard for shard in names if not (folder / shard).is_file()):
            yield f"{', '.join(missing)} is missing, which {name} names"
    yield from _weight_faults(folder)


def _token_faults(name: str, values: dict[str, Any]) -> Iterator[str]:
    """Tokens are given by their numbers: several may end a text, one begins and one pads it."""
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = values.get(key)
        several = key == "eos_token_id" and isinstance(value, list)
        if value is not None and not all(type(each) is int for each in (value if several else [value])):
            yield f"{name}: {key} is {value!r}, not the number of a token"


def _weight_faults(folder: Path) -> Iterator[str]:
    """By the headers of the files, which say how long they are."""
    from safetensors import SafetensorError, safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files and not list(folder.glob("*.bin")):
        yield "its weights are missing: no *.safetensors"
    for path in files:
        try:
            with safe_open(path, framework="np"):
                pass
        except (SafetensorError, OSError) as error:
            yield f"{path.name} is damaged: {error}"


# ---------------------------------------------------------------------- sizes of the CPU profile


@dataclass(frozen=True)
class ModelSizes:
    """Counts of numbers."""

    parameters: int
    largest: int  # of its tensors
    cached: int  # keys and values of a token
    vocabulary: int  # logits of a token
    positions: int | None  # that it knows; None: any

    @property
    def memory(self) -> int:
        """Bytes of main memory that training takes, without the cache of keys and values."""
        return BASE_BYTES + NUMBER_BYTES * (COPIES * self.parameters + 2 * self.largest)


def fit_to_model(options: RecipeOptions, model: str | None, config: DictConfig) -> list[str]:
    """Adapt the sizes of the CPU profile to a model; None: the tiny policy, or one that is not there yet.

    Returns:
        The reasons why it cannot be trained on this machine, one line each.
    """
    if not options.on_cpu or model is None:
        return []
    try:
        sizes = model_sizes(model)
    except ValueError as error:
        return [str(error)]
    if sizes.parameters > TINY and options.policy == "tiny":
        click.echo(
            f"note: this run uses a learning rate of {config.actor_rollout_ref.actor.optim.lr:g}, the prompt "
            f'"{config.research.prompt}", and the limits and lengths of the CPU profile, which are meant for '
            "a tiny policy; docs/cpu.md says what another model needs"
        )
    memory = psutil.virtual_memory().total
    set_sizes(config, sizes, memory)
    return list(_size_faults(model, config, sizes, memory))


def model_sizes(model: str) -> ModelSizes:
    """From the model's config.json, in its folder or on the hub; the weights are not read.

    Raises:
        ValueError: there is no such model, or transformers does not know its kind; one line for the user.
    """
    import torch  # takes seconds, and is needed for a model of the user's alone
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
        with torch.device("meta"):
            parameters = [each.numel() for each in AutoModelForCausalLM.from_config(config).parameters()]
    except (OSError, ValueError) as error:
        absent = isinstance(error, OSError) and not Path(model).exists()
        reason = "not to be found on the hub from here" if absent else str(error).splitlines()[0]
        raise ValueError(f"--model: {model}: {reason}") from error
    text: Any = config.get_text_config()
    heads = getattr(text, "num_attention_heads", 0)  # none: no cache that grows with the tokens
    dimension = getattr(text, "head_dim", None) or text.hidden_size // max(heads, 1)
    cached = 2 * text.num_hidden_layers * (getattr(text, "num_key_value_heads", None) or heads) * dimension
    positions = getattr(text, "max_position_embeddings", None)
    return ModelSizes(sum(parameters), max(parameters), cached, text.vocab_size, positions)


def set_sizes(config: DictConfig, sizes: ModelSizes, memory: int) -> None:
    """Adapt the sizes of a composed configuration to the model. `memory`: bytes of the machine."""
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    rollout.max_model_len = min(rollout.max_model_len, sizes.positions or rollout.max_model_len)
    engine, bucket = rollout.checkpoint_engine, -(-sizes.largest * NUMBER_BYTES // MIB)
    engine.update_weights_bucket_megabytes = max(engine.update_weights_bucket_megabytes, bucket)
    tokens = LOGITS_BYTES // (LOGITS_COPIES * NUMBER_BYTES * sizes.vocabulary)
    actor.ppo_max_token_len_per_gpu = min(actor.ppo_max_token_len_per_gpu, max(tokens, rollout.max_model_len))
    # Room for all sequences at once, or half of what the model leaves; for one sequence in any case.
    each = 2 if rollout.dtype in ("bfloat16", "float16") else NUMBER_BYTES
    sequence, room = sizes.cached * each * rollout.max_model_len, (memory - sizes.memory) // 2
    cache = -(-max(sequence, min(rollout.max_num_seqs * sequence, room)) // GIB)
    environment = config.ray_kwargs.ray_init.runtime_env.env_vars
    environment.VLLM_CPU_KVCACHE_SPACE = str(max(int(environment.VLLM_CPU_KVCACHE_SPACE), cache))


def _size_faults(model: str, config: DictConfig, sizes: ModelSizes, memory: int) -> Iterator[str]:
    rollout = config.actor_rollout_ref.rollout
    longest = config.data.max_prompt_length + config.data.max_response_length
    if rollout.max_model_len < longest:
        yield (
            f"--model: {model} knows {sizes.positions} positions, data.max_prompt_length and "
            f"data.max_response_length come to {longest}"
        )
    cache = int(config.ray_kwargs.ray_init.runtime_env.env_vars.VLLM_CPU_KVCACHE_SPACE) * GIB
    needed = sizes.memory + cache
    if needed > memory:
        yield (
            f"memory: training {model} takes about {size_text(needed)}, {size_text(cache)} of it for keys "
            f"and values (VLLM_CPU_KVCACHE_SPACE); this machine has {size_text(memory)}"
        )
    bucket = rollout.checkpoint_engine.update_weights_bucket_megabytes * MIB
    free = psutil.disk_usage(str(SHARED_MEMORY)).free if SHARED_MEMORY.is_dir() else bucket
    if free < bucket:
        yield (
            f"shared memory: new weights pass through {SHARED_MEMORY} in pieces of {size_text(bucket)}, "
            f"{size_text(free)} are free there (docker run --shm-size)"
        )
