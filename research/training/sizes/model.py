"""How large a model is, by its description alone; the weights are not read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Where the hub cannot be asked: hidden size, intermediate size, layers, heads, key-value heads, vocabulary,
# and whether input and output share the embeddings: config.json of Qwen/Qwen2.5-NAME and -NAME-Instruct.
QWEN = {
    "0.5B": (896, 4864, 24, 14, 2, 151_936, True),
    "1.5B": (1536, 8960, 28, 12, 2, 151_936, True),
    "3B": (2048, 11008, 36, 16, 2, 151_936, True),
    "7B": (3584, 18944, 28, 28, 4, 152_064, False),
    "14B": (5120, 13824, 48, 40, 8, 152_064, False),
    "32B": (5120, 27648, 64, 40, 8, 152_064, False),
}
QWEN_POSITIONS = 32_768


@dataclass(frozen=True)
class ModelSizes:
    """Counts of numbers; `hidden` and `intermediate` of the vectors in a layer."""

    parameters: int
    largest: int  # of its tensors
    layers: int
    hidden: int
    intermediate: int
    heads: int
    cached_width: int  # keys, or values, of a token in one layer
    vocabulary: int  # logits of a token
    positions: int | None  # that it knows; None: any

    @property
    def cached(self) -> int:
        """Keys and values of a token."""
        return 2 * self.layers * self.cached_width


def model_sizes(model: str) -> ModelSizes:
    """From the model's config.json, in its folder or on the hub; of well-known models also without the hub.

    Raises:
        ValueError: there is no such model, or transformers does not know its kind; one line for the user.
    """
    import torch  # takes seconds, and is needed for a model of the user's alone
    from transformers import AutoModelForCausalLM

    try:
        config = _description(model)
        with torch.device("meta"):
            parameters = [each.numel() for each in AutoModelForCausalLM.from_config(config).parameters()]
    except (OSError, ValueError) as error:
        absent = isinstance(error, OSError) and not Path(model).exists()
        reason = "not to be found on the hub from here" if absent else str(error).splitlines()[0]
        raise ValueError(f"--model: {model}: {reason}") from error
    text: Any = config.get_text_config()
    heads = getattr(text, "num_attention_heads", 0)  # none: no cache that grows with the tokens
    dimension = getattr(text, "head_dim", None) or text.hidden_size // max(heads, 1)
    return ModelSizes(
        parameters=sum(parameters),
        largest=max(parameters),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        heads=heads,
        cached_width=(getattr(text, "num_key_value_heads", None) or heads) * dimension,
        vocabulary=text.vocab_size,
        positions=getattr(text, "max_position_embeddings", None),
    )


def _description(model: str) -> Any:
    from transformers import AutoConfig, Qwen2Config

    try:
        return AutoConfig.from_pretrained(model, trust_remote_code=False)
    except OSError:
        name = model.removeprefix("Qwen/Qwen2.5-").removesuffix("-Instruct")
        if not model.startswith("Qwen/Qwen2.5-") or name not in QWEN:
            raise
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
