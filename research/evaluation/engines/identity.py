"""Which model answers: its name, and a checksum if it is a folder, which the next policy may overwrite."""

import hashlib
from pathlib import Path
from typing import Any

from research.evaluation.config import EngineConfig, EvaluationError

EDGE = (
    2**20
)  # bytes that are read at either end of a file: new weights differ everywhere, and 15 GB take a while


def model_identity(config: EngineConfig) -> dict[str, Any]:
    """`model` as configured, and `model_sha256` and `tokenizer_sha256` of those that are local folders.

    Raises EvaluationError for a file that cannot be read.
    """
    identity: dict[str, Any] = {"model": config.model}
    for name, folder in (("model", config.model), ("tokenizer", config.tokenizer)):
        if folder is not None and Path(folder).is_dir():
            identity[f"{name}_sha256"] = _checksum(Path(folder))
    return identity


def _checksum(folder: Path) -> str:
    """Of the names, sizes and edges of the files; the same for a copy elsewhere."""
    checksum = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        size = path.stat().st_size
        checksum.update(f"{path.name}\0{size}\0".encode())
        try:
            with path.open("rb") as file:
                checksum.update(file.read(EDGE))
                file.seek(max(EDGE, size - EDGE))
                checksum.update(file.read(EDGE))
        except OSError as error:
            raise EvaluationError(f"{path} cannot be read ({error.strerror})") from error
    return checksum.hexdigest()[:16]
