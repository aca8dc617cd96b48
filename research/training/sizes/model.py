"""A model's size, and whether it can be trained packed, from its description; reads no weights."""

import copy
import functools
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Known without asking the hub: hidden size, intermediate size, layers, heads, key-value heads, vocabulary,
# and whether input and output share the embeddings: config.json of Qwen/Qwen2.5-NAME and
# -NAME-Instruct.
QWEN = {
    "0.5B": (896, 4864, 24, 14, 2, 151_936, True),
    "1.5B": (1536, 8960, 28, 12, 2, 151_936, True),
    "3B": (2048, 11008, 36, 16, 2, 151_936, True),
    "7B": (3584, 18944, 28, 28, 4, 152_064, False),
    "14B": (5120, 13824, 48, 40, 8, 152_064, False),
    "32B": (5120, 27648, 64, 40, 8, 152_064, False),
}
QWEN_POSITIONS = 32_768
SMOLLM2 = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
SMOLLM2 |= {"num_key_value_heads": 3, "vocab_size": 49_152, "max_position_embeddings": 8192}
SMOLLM2 |= {"tie_word_embeddings": True}
# Kinds whose log-probs veRL computes from the last hidden states, piece by piece, so that there are never
# logits of all tokens. Others scale or cap their logits, or name the last layer otherwise.
FUSED = {"qwen2", "qwen3", "qwen3_moe", "llama", "mistral", "gemma3_text"}
ABSENT = (
    "no folder, and not to be found on the hub from here; give a folder, or check the name, the network and, "
    "for a gated model, `hf auth login`"
)
TARGETS = "actor_rollout_ref.model.target_modules"
ATTENTION_KEY = "actor_rollout_ref.model.override_config.attn_implementation"
ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}
"""Layers in which a sequence sees itself alone, if it is told where it begins"""


@dataclass(frozen=True)
class ModelSizes:
    """Counts of numbers; `hidden` and `intermediate` of the vectors in a layer."""

    parameters: int
    largest: int  # of its tensors
    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    cached_width: int  # keys, or values, of a token in one layer
    vocabulary: int  # logits of a token
    positions: int | None  # that it knows; None: any
    fused: bool  # see FUSED
    tied: bool  # input and output share the embeddings

    @property
    def cached(self) -> int:
        """Keys and values of a token."""
        return 2 * self.layers * self.cached_width


def model_sizes(model: str) -> ModelSizes:
    """From the model's config.json, in its folder or on the hub; of well-known models also without the hub.

    Raises:
        ValueError: there is no such model, or transformers does not know its kind; one line for the user.
    """
    try:
        config = _description(model)
        parameters = [each.numel() for each in _without_weights(config).parameters()]
    except Exception as error:  # whatever a damaged description leads transformers to
        absent = isinstance(error, OSError) and not Path(model).exists()
        reason = ABSENT if absent else _line(error)
        raise ValueError(f"--model: {model}: {reason}") from error
    text: Any = config.get_text_config()
    heads = getattr(text, "num_attention_heads", 0)  # none: no cache that grows with the tokens
    key_value_heads = getattr(text, "num_key_value_heads", None) or heads
    dimension = getattr(text, "head_dim", None) or text.hidden_size // max(heads, 1)
    capped = getattr(text, "final_logit_softcapping", None) is not None
    return ModelSizes(
        parameters=sum(parameters),
        largest=max(parameters),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        heads=heads,
        key_value_heads=key_value_heads,
        cached_width=key_value_heads * dimension,
        vocabulary=text.vocab_size,
        positions=getattr(text, "max_position_embeddings", None),
        fused=config.model_type in FUSED and not capped,
        tied=bool(getattr(text, "tie_word_embeddings", False)),
    )


def vector_width(encoder: str) -> int | None:
    """The width of an encoder's vectors by its description; None if neither folder nor hub has one."""
    try:
        return int(_description(encoder).get_text_config().hidden_size)
    except (OSError, ValueError, AttributeError):
        return None


def packing_faults(model: str, attention: str) -> Iterator[str]:
    """Why a model whose sizes are known cannot be trained on packed sequences, with what to do.

    `attention`: a name of transformers' ``attn_implementation``, or our own packed_sdpa.
    """
    import research.training.verl.packed_attention  # noqa: F401  (registers packed_sdpa)

    config = _description(model)
    text: Any = config.get_text_config()
    if getattr(config, "quantization_config", None):
        yield "its weights are quantised, but veRL trains plain ones: take the model that it was made of"
    try:
        network = _without_weights(config, attn_implementation=attention)
    except Exception as error:  # each kind of model refuses in its own way
        yield f"it does not take attn_implementation={attention} ({_line(error)})"
        return
    if getattr(network, "_is_stateful", False) or set(getattr(text, "layer_types", None) or ()) - ATTENTION:
        yield (
            "it has layers with a state, which would run from one packed sequence into the next: give "
            "actor_rollout_ref.model.use_remove_padding=false"
        )
    if getattr(text, "attn_logit_softcapping", None) and attention.endswith("sdpa"):
        yield f"it caps the logits of its attention, which {attention} does not: give {ATTENTION_KEY}=eager"


def adapter_faults(model: str, targets: Any) -> Iterator[str]:
    """Why peft cannot put low-rank adapters into a model whose sizes are known, with what to do."""
    import torch
    from peft import LoraConfig, get_peft_model

    try:
        with torch.device("meta"), warnings.catch_warnings(action="ignore"):
            adapters = LoraConfig(task_type="CAUSAL_LM", target_modules=targets)
            get_peft_model(_without_weights(_description(model)), adapters)
    except Exception as error:  # each kind of model refuses in its own way
        yield (
            f"it takes no adapters of {TARGETS}={targets} ({_line(error)}); name other modules, or leave "
            "--lora-rank out"
        )


def _without_weights(config: Any, **options: Any) -> Any:
    import torch  # takes seconds, and is needed for a model of the user's alone
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, **options)


def _line(error: Exception) -> str:
    """The reason is often on the last of several lines."""
    return textwrap.shorten(str(error), 300) or type(error).__name__


def _description(model: str) -> Any:
    """A fresh configuration; the hub is asked only once, because that takes long if it does not answer."""
    if Path(model).exists():
        return _read(model)
    if isinstance(found := _read_once(model), Exception):
        raise found
    return copy.deepcopy(found)


@functools.cache
def _read_once(model: str) -> Any:
    """What is found, or the error."""
    try:
        return _well_known(model) or _read(model)
    except Exception as error:
        return error


def _read(model: str) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(model, trust_remote_code=False)


def _well_known(model: str) -> Any:
    from transformers import LlamaConfig, Qwen2Config

    if model == "HuggingFaceTB/SmolLM2-135M-Instruct":
        return LlamaConfig(**SMOLLM2)
    name = model.removeprefix("Qwen/Qwen2.5-").removesuffix("-Instruct")
    if not model.startswith("Qwen/Qwen2.5-") or name not in QWEN:
        return None
    hidden, intermediate, layers, heads, key_values, vocabulary, tied = QWEN[name]
    return Qwen2Config(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_values,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
        max_position_embeddings=QWEN_POSITIONS,
    )
