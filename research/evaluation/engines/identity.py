"""Which model answers: its name, and a checksum of a folder, which the next policy may overwrite."""

import hashlib
import json
from pathlib import Path
from typing import Any

from research.evaluation.config import EngineConfig, EvaluationError
from research.model_folder import model_faults

# Others, such as README.md, do not change what the model samples.
READ = {".safetensors", ".bin", ".json", ".jinja", ".model", ".txt", ".tiktoken", ".py"}


def model_identity(config: EngineConfig) -> dict[str, Any]:
    """`model`, and `model_sha256` and `tokenizer_sha256` of folders. Raises EvaluationError."""
    identity: dict[str, Any] = {"model": config.model}
    for name, folder in (("model", config.model), ("tokenizer", config.tokenizer)):
        if folder is not None and Path(folder).is_dir():
            identity[f"{name}_sha256"] = _checksum(Path(folder))
    return identity


def check_model(config: EngineConfig) -> None:
    """Raise EvaluationError if it is a damaged folder, or neither a folder nor a name on the hub."""
    if config.model is None or config.is_url:
        return
    for fault in model_faults(config.model):
        if config.tokenizer is None or "tokenizer" not in fault:
            raise EvaluationError(f"--model: {fault}")


def hash_of(parts: Any) -> str:
    """A hash of a value of JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _checksum(folder: Path) -> str:
    """A hash of the names and contents of the files that matter; the same for a copy elsewhere."""
    checksum = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix in READ and path.is_file()):
        checksum.update(f"{path.relative_to(folder)}\0{file_sha256(path)}\0".encode())
    return checksum.hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """The checksum of a file. Raises EvaluationError."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read ({error.strerror})") from error
