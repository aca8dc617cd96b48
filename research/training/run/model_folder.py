"""Whether a folder of the user's holds a whole Hugging Face model: what is missing or cut would be noticed
only after minutes, when the model is loaded.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Any of them makes a tokenizer of transformers.
TOKENIZERS = (
    *("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "*.tiktoken"),
    *("sentencepiece.bpe.model", "tekken.json"),
)
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
DESCRIPTIONS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", *INDEXES)


def folder_faults(folder: Path) -> Iterator[str]:
    """What is wrong with the model in a folder, in words for a bracket. Weights are not read."""
    if not (folder / "config.json").is_file():
        yield "config.json is missing"
        return
    found = {}
    for name in DESCRIPTIONS:
        if (folder / name).is_file():
            try:
                found[name] = _read(folder / name)
            except (ValueError, OSError, RecursionError) as error:
                yield f"{name} is damaged: {error}"
    for name in ("config.json", "generation_config.json"):
        yield from _wrong_tokens(name, found.get(name, {}))
    if not any(path.is_file() for pattern in TOKENIZERS for path in folder.glob(pattern)):
        yield "its tokenizer is missing: no tokenizer.json, tokenizer.model or vocabulary"
    yield from _weight_faults(folder, found)


def _read(path: Path) -> dict[str, Any]:
    values = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError("not an object")
    return values


def _wrong_tokens(name: str, values: dict[str, Any]) -> Iterator[str]:
    """Several tokens may end a text, each by its number; one begins and one pads it."""
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = values.get(key)
        several = key == "eos_token_id" and isinstance(value, list)
        if value is not None and not all(type(each) is int for each in (value if several else [value])):
            yield f"{name}: {key} is {value!r}, not the number of a token"


def _weight_faults(folder: Path, found: dict[str, dict[str, Any]]) -> Iterator[str]:
    files = sorted(folder.glob("*.safetensors"))
    if not files and not list(folder.glob("*.bin")):
        yield "its weights are missing: no *.safetensors"
        return
    for name in INDEXES:
        shards = found.get(name, {}).get("weight_map", {})
        names = set(map(str, shards.values())) if isinstance(shards, dict) else set()
        missing = sorted(shard for shard in names if not (folder / shard).is_file())
        if missing:
            yield f"{', '.join(missing)} is missing, which {name} names"
    for path in files:
        if fault := _safetensors_fault(path):
            yield f"{path.name} is damaged: {fault}"


def _safetensors_fault(path: Path) -> str:
    """By its header, which says how long the file is."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):
            return ""
    except (SafetensorError, OSError) as error:
        return str(error)
