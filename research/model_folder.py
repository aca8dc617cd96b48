"""Checks that the folder of a user's model is complete, before it is loaded."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from research.errors import DataError
from research.values import HUB_NAME

# Any of them makes a tokenizer of transformers.
TOKENIZERS = (
    *("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "*.tiktoken"),
    *("sentencepiece.bpe.model", "tekken.json"),
)
WEIGHT_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
DESCRIPTIONS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


def model_faults(name: str) -> Iterator[str]:
    """What is wrong with the name or the folder of a model."""
    if Path(name).exists():
        for fault in folder_faults(Path(name)):
            yield f"{name} is not a folder with a Hugging Face model ({fault})"
    elif not HUB_NAME.fullmatch(name):
        yield f"there is no folder {name}, and it is not a name on the hub (NAME or OWNER/NAME)"


def require_model(name: str) -> None:
    """Raises DataError for the first fault of a `--model`."""
    for fault in model_faults(name):
        raise DataError(f"--model: {fault}")


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a `--model`. Raises DataError."""
    from transformers import AutoTokenizer

    require_model(name)
    with named(name):
        return AutoTokenizer.from_pretrained(name)


@contextmanager
def named(name: str) -> Iterator[None]:
    """Whatever keeps transformers from loading a `--model` becomes a DataError of one line."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise DataError(f"--model: {name} cannot be loaded: {str(error).strip().splitlines()[0]}") from error


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
    """Faults of the token numbers: several may end a text, one begins it and one pads it."""
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = values.get(key)
        several = key == "eos_token_id" and isinstance(value, list)
        if value is not None and not all(type(each) is int for each in (value if several else [value])):
            yield f"{name}: {key} is {value!r}, not the number of a token"


def _weight_faults(folder: Path) -> Iterator[str]:
    """Faults of the weights by the headers of their files, which give their length."""
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
