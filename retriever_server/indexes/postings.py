"""Postings: which terms stand in which passages, and how often, written term by term in bounded memory.

Passages come one after the other, an index wants terms one after the other. So chunks of passages are counted
into a file in between, and a second pass over that puts each count where its term's postings go. Memory holds
the vocabulary and one chunk.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from retriever_server.corpus import Corpus
from retriever_server.indexes.analysis import MOST_CACHED, Analyzer, words

CHUNK_ROWS = 8192
COUNTS_FILE = "counts.npy"


class Terms(NamedTuple):
    """What a corpus consists of: its terms, numbered in the order in which they first appear."""

    vocabulary: dict[str, int]
    frequencies: np.ndarray
    """In how many passages each term stands: int64 [terms]."""
    lengths: np.ndarray
    """How many terms each passage has, repeated ones too: int32 [passages]."""


class Chunk(NamedTuple):
    """Counts of some passages, by term and then by row: int32 [n] each."""

    terms: np.ndarray
    rows: np.ndarray
    counts: np.ndarray


class _Numbers(dict[str, int]):
    """word -> number of its term, -1 for a stop word; a new term gets the next number."""

    def __init__(self) -> None:
        self.vocabulary: dict[str, int] = {}
        self._analyzer = Analyzer()

    def __missing__(self, word: str) -> int:
        if len(self) >= MOST_CACHED:
            self.clear()
        term = self._analyzer.term(word)
        number = self.vocabulary.setdefault(term, len(self.vocabulary)) if term else -1
        self[word] = number
        return number


def count_terms(corpus: Corpus, directory: Path) -> Terms:
    """Analyse every passage; the counts go into COUNTS_FILE in `directory`, which scatter() reads."""
    numbers, frequencies = _Numbers(), np.zeros(0, np.int64)
    lengths = np.zeros(len(corpus), np.int32)
    with (
        (directory / COUNTS_FILE).open("wb") as file,
        tqdm(total=len(corpus), desc="counting terms", unit=" passages", mininterval=1, delay=2) as progress,
    ):
        for start in range(0, len(corpus), CHUNK_ROWS):
            rows = range(start, min(start + CHUNK_ROWS, len(corpus)))
            chunk = _count(corpus, rows, numbers, lengths)
            for array in chunk:
                np.save(file, array)
            found = np.bincount(chunk.terms, minlength=len(numbers.vocabulary))
            found[: len(frequencies)] += frequencies
            frequencies = found
            progress.update(len(rows))
    return Terms(numbers.vocabulary, frequencies, lengths)


def _count(corpus: Corpus, rows: range, numbers: _Numbers, lengths: np.ndarray) -> Chunk:
    passages = []
    for row in rows:
        found = np.fromiter(map(numbers.__getitem__, words(corpus[row].contents)), np.int64)
        passages.append(found[found >= 0])
        lengths[row] = len(passages[-1])
    # One number for term and row together: its order is theirs, and numpy counts it.
    of_row = np.repeat(np.arange(len(rows)), [len(found) for found in passages])
    both, counts = np.unique(np.concatenate(passages) * len(rows) + of_row, return_counts=True)
    terms, within = np.divmod(both, len(rows))
    return Chunk(terms.astype(np.int32), (within + rows.start).astype(np.int32), counts.astype(np.int32))


def scatter(terms: Terms, directory: Path, put: Callable[[np.ndarray, Chunk], None]) -> None:
    """Call `put(places, chunk)` for every chunk of counts and remove the file of them.

    `places` int64 [n] is where each count of the chunk goes, so that the postings of term 0 come first, those
    of term 1 next and so on, and the postings of one term are in row order.
    """
    following = np.cumsum(terms.frequencies) - terms.frequencies
    with tqdm(
        total=int(terms.frequencies.sum()), desc="sorting postings", mininterval=1, delay=2
    ) as progress:
        for chunk in _chunks(directory / COUNTS_FILE):
            starts = np.flatnonzero(np.diff(chunk.terms, prepend=-1))  # of the runs of equal terms
            repeats = np.diff(starts, append=len(chunk.terms))
            shifts = following[chunk.terms[starts]] - starts
            put(np.arange(len(chunk.terms)) + np.repeat(shifts, repeats), chunk)
            following[chunk.terms[starts]] += repeats
            progress.update(len(chunk.terms))
    (directory / COUNTS_FILE).unlink()


def _chunks(path: Path) -> Iterator[Chunk]:
    size = path.stat().st_size
    with path.open("rb") as file:
        while file.tell() < size:
            yield Chunk(np.load(file), np.load(file), np.load(file))
