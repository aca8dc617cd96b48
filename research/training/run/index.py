"""The index of a run's corpus: the folder where it is kept, the command that builds it, keys of the cache."""

import hashlib
import shlex
from pathlib import Path
from typing import Any

from research.places import CACHE
from research.training.run.options import Command, RecipeOptions, module_command

INDEX_FORMAT = 2  # of the retrieval server's manifests; older indexes in the cache are built again


def index_command(options: RecipeOptions, inputs: RecipeOptions, corpus: Path) -> Command:
    """Build the index of the corpus, with the user's words; it may be one that was made elsewhere."""
    folder = _index_folder(inputs, corpus)
    words: list[Any] = ["build", corpus, folder]
    words += ["--encoder", inputs.encoder] if inputs.is_dense else []
    words += ["--index", inputs.index] if inputs.index != "flat" else []
    if inputs.faiss_index and inputs.is_dense:
        # The user's file is the index itself; other kinds are built from the vectors of the corpus's own one.
        adopted = options.faiss_index or inputs.index == "flat"
        words += ["--faiss-index" if adopted else "--vectors", inputs.faiss_index]
    words += shlex.split(options.build_args)
    return module_command("build the index", "retriever_server", *words, creates=folder)


def _index_folder(inputs: RecipeOptions, corpus: Path) -> Path:
    """The index's folder: in the cache, or in the run folder if the run makes its own corpus.

    A corpus of ours in the cache has its key in its path; a user's may change under the same path.
    """
    if corpus.is_relative_to(inputs.run_dir):
        return inputs.run_dir / "index"
    kind: tuple[Any, ...] = () if inputs.index == "flat" else (inputs.index,)
    if inputs.faiss_index and inputs.is_dense:
        kind += (inputs.faiss_index.resolve(), *(version_of(inputs.faiss_index) or ()))
    parts = (*kind, inputs.encoder if inputs.is_dense else "", *filter(None, (inputs.build_args,)))
    return CACHE / f"index-{cache_key(INDEX_FORMAT, corpus.resolve(), *parts, *(version_of(corpus) or ()))}"


def cache_key(*parts: Any) -> str:
    """A name for what is made from these parts, the same in every process."""
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:12]


def version_of(path: Path) -> tuple[int, int] | None:
    """Size and time of a user's file, which may change under its name; None for ours or a missing one."""
    if path.is_relative_to(CACHE) or not path.exists():
        return None
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns
