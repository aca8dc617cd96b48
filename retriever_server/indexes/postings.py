"""Postings: which terms are in which passages, and how often, written term by term in bounded memory.

Passages arrive in order, but an index is ordered by term. So chunks of passages are counted into an
intermediate file, and a second pass over it puts each count into its term's postings. Memory holds the
vocabulary and one chunk; scipy or bm25s would hold the whole corpus.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from retriever_server.corpus import Corpus, row_chunks
from retriever_server.indexes.analysis import Analyzer

CHUNK_ROWS = 8192
COUNTS_FILE = "counts.npy"


class Terms(NamedTuple):
    """A corpus's terms, numbered in the order of their first appearance.

    `frequencies`: the number of passages with each term, int64 [terms]. `lengths`: the number of terms of
    each passage, with repetitions, int32 [passages].
    """

    vocabulary: dict[str, int]
    frequencies: np.ndarray
    lengths: np.ndarray


class Chunk(NamedTuple):
    """Counts of some passages, by term and then by row: int32 [n] each."""

    terms: np.ndarray
    rows: np.ndarray
    counts: np.ndarray


def count_terms(corpus: Corpus, directory: Path) -> Terms:
    """Analyse every passage; the counts go into COUNTS_FILE in `directory`, which scatter() reads."""
    analyzer, vocabulary = Analyzer(), defaultdict[str, int]()
    vocabulary.default_factory = vocabulary.__len__  # a new term gets the next number
    frequencies, lengths = np.zeros(0, np.int64), np.zeros(len(corpus), np.int32)
    with (directory / COUNTS_FILE).open("wb") as file:
        for rows in row_chunks(len(corpus), CHUNK_ROWS, "counting terms"):
            analysed = (analyzer.terms(corpus[row].contents) for row in rows)
            passages = [np.fromiter(map(vocabulary.__getitem__, terms), np.int64) for terms in analysed]
            lengths[rows.start : rows.stop] = [len(passage) for passage in passages]
            chunk = _count(passages, rows)
            for array in chunk:
                np.save(file, array)
            of_chunk = np.bincount(chunk.terms, minlength=len(vocabulary))
            of_chunk[: len(frequencies)] += frequencies
            frequencies = of_chunk
    return Terms(vocabulary, frequencies, lengths)


def _count(passages: list[np.ndarray], rows: range) -> Chunk:
    # One number for term and row together: its order is theirs, and numpy counts it.
    of_row = np.repeat(np.arange(len(rows)), [len(passage) for passage in passages])
    both, counts = np.unique(np.concatenate(passages) * len(rows) + of_row, return_counts=True)
    terms, within = np.divmod(both, len(rows))
    return Chunk(terms.astype(np.int32), (within + rows.start).astype(np.int32), counts.astype(np.int32))


def scatter(terms: Terms, directory: Path) -> Iterator[tuple[np.ndarray, Chunk]]:
    """Yield (places, chunk) for every chunk of counts, then remove their file.

    `places` int64 [n] is where each count of the chunk goes, so that the postings of term 0 come first, those
    of term 1 next and so on, and the postings of one term are in row order.
    """
    path, total = directory / COUNTS_FILE, int(terms.frequencies.sum())
    size = path.stat().st_size
    following = np.cumsum(terms.frequencies) - terms.frequencies
    progress = tqdm(total=total, desc="sorting postings", mininterval=1, delay=2)
    with progress, path.open("rb") as file:
        while file.tell() < size:
            chunk = Chunk(np.load(file), np.load(file), np.load(file))
            starts = np.flatnonzero(np.diff(chunk.terms, prepend=-1))  # of the runs of equal terms
            repeats = np.diff(starts, append=len(chunk.terms))
            shifts = following[chunk.terms[starts]] - starts
            yield np.arange(len(chunk.terms)) + np.repeat(shifts, repeats), chunk
            following[chunk.terms[starts]] += repeats
            progress.update(len(chunk.terms))
    path.unlink()
