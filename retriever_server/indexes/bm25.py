"""BM25: passages ranked by the words they share with the query, rare words first.

Two kinds over the same files, N passages, df(t) of them with term t:

    idf(t)         = ln((N + 1) / (df(t) + 1/2))
    sat(tf, len)   = tf / (tf + k1 (1 - b + b len / mean))
    passage(t)     = idf(t) sat(tf in the passage, |passage|)
    bm25                 sum over the query's terms: tf in the query * passage(t)
    bm25_query_weighted  sum over the query's terms: idf(t) sat(tf in the query, |query|) * passage(t)

The first is Lucene's, and so Anserini's and Pyserini's, with exact lengths where Lucene rounds them. The
second is what BRIGHT's published BM25 figures come from (gensim's LuceneBM25Model on query and passages
alike): it holds back words that a long query repeats. `mean` is that of the passages in both places. Lengths
are numbers of terms, stop words not counted; of a query's terms only those count that the corpus has.

The files are those of the library bm25s, which opens them, and the passages' lengths beside them. bm25s
itself wants a whole corpus in memory to build them and gives a query no weights, so that stands here and in
postings.py. Arrays are memory-mapped; the vocabulary is in memory.
"""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import bm25s
import numpy as np

from retriever_server.errors import BUILD_AGAIN, RetrieverError
from retriever_server.indexes import Needs, Queries, Settings, Sources
from retriever_server.indexes.analysis import Analyzer
from retriever_server.indexes.options import Bm25Options, Options
from retriever_server.indexes.postings import Chunk, Terms, count_terms, scatter

WEIGHTS_FILE = "data.csc.index.npy"  # idf times saturation of each posting, float32
ROWS_FILE = "indices.csc.index.npy"  # row of each posting, int32, ascending within a term
BEGINS_FILE = "indptr.csc.index.npy"  # where each term's postings begin, int64 [terms + 1]
VOCABULARY_FILE = "vocab.index.json"  # term -> its number
PARAMETERS_FILE = "params.index.json"  # k1, b, and what bm25s wants to know
LENGTHS_FILE = "lengths.npy"  # terms of each passage, int32 [passages]
PASSAGE_BYTES = 8 * 80  # a posting is 8, and a passage of 100 words has some 60 different terms
VOCABULARY_BYTES = 50  # a passage: large corpora have a third of a new word in each
CHUNK_BYTES = 500_000_000
BLOCK_ROWS = 1 << 18  # scored at a time: their scores stay in the cache of the processor
FILES = (WEIGHTS_FILE, ROWS_FILE, BEGINS_FILE, VOCABULARY_FILE, PARAMETERS_FILE, LENGTHS_FILE)


class _Formula(NamedTuple):
    """What the scores of one corpus depend on."""

    options: Bm25Options
    passages: int
    mean_length: float

    def idf(self, frequencies: np.ndarray) -> np.ndarray:
        return np.log((self.passages + 1) / (frequencies + 0.5))

    def saturation(self, counts: np.ndarray, lengths: np.ndarray | float) -> np.ndarray:
        k1, b = self.options.k1, self.options.b
        saturated: np.ndarray = counts / (counts + k1 * (1 - b + b * lengths / self.mean_length))
        return saturated


class Bm25Index:
    """Lucene's BM25. Safe to search from many threads."""

    dense = False

    def __init__(self, directory: Path, settings: Settings) -> None:
        """The parameters are those in the files. Raises RetrieverError when they are not such an index."""
        try:
            opened = bm25s.BM25.load(directory, mmap=True)
            self._lengths = np.load(directory / LENGTHS_FILE, mmap_mode="r")
        except (ValueError, KeyError, TypeError) as error:
            raise RetrieverError(f"{directory}: not a BM25 index ({error}); {BUILD_AGAIN}") from error
        # Plain arrays over the mapped files: slices of them cost less.
        self._weights, self._rows, self._begins = (
            np.asarray(opened.scores[name]) for name in ("data", "indices", "indptr")
        )
        self._vocabulary: dict[str, int] = opened.vocab_dict
        self.count: int = len(self._lengths)
        if len(self._begins) != len(self._vocabulary) + 1 or opened.scores["num_docs"] != self.count:
            raise RetrieverError(f"{directory}: the files are not of one BM25 index; {BUILD_AGAIN}")
        self._formula = _formula(Bm25Options(k1=opened.k1, b=opened.b), self._lengths)
        self._analyzer = Analyzer()

    @classmethod
    def needs(cls, count: int, dimension: int | None, options: Options) -> Needs:
        """The files, with as much again for the counts in between; in memory the vocabulary and a chunk."""
        return Needs(disk=2 * PASSAGE_BYTES * count, memory=CHUNK_BYTES + VOCABULARY_BYTES * count)

    @classmethod
    def build(cls, sources: Sources, directory: Path) -> list[str]:
        """Analyse the passages. A build that was stopped begins anew."""
        assert isinstance(sources.options, Bm25Options)
        chosen = sources.options
        terms = count_terms(sources.corpus, directory)
        _write_postings(directory, terms, _formula(chosen, terms.lengths))
        np.save(directory / LENGTHS_FILE, terms.lengths)
        np.save(directory / BEGINS_FILE, np.concatenate([[0], np.cumsum(terms.frequencies)]))
        (directory / VOCABULARY_FILE).write_bytes(json.dumps(terms.vocabulary, ensure_ascii=False).encode())
        (directory / PARAMETERS_FILE).write_text(json.dumps(_parameters(chosen, len(terms.lengths))) + "\n")
        return list(FILES)

    def check(self, rows: np.ndarray, texts: list[str], vectors: np.ndarray | None) -> np.ndarray:
        """Whether the length and each term's weight of a row are those of its text, analysed anew."""
        held = [self._holds(row, text) for row, text in zip(rows.tolist(), texts, strict=True)]
        return np.array(held, bool)

    def _holds(self, row: int, text: str) -> bool:
        found, counts = self._known(text)
        length = int(self._lengths[row])
        if counts.sum() != length or len(self._analyzer.terms(text)) != length:
            return False
        begins, ends = self._begins[found], self._begins[found + 1]
        spans = zip(begins.tolist(), ends.tolist(), strict=True)
        # The row as int32: any other type would have each list of rows copied to that type.
        offsets = [np.searchsorted(self._rows[begin:end], np.int32(row)) for begin, end in spans]
        places = begins + np.array(offsets, np.int64)
        if (places == ends).any() or (self._rows[places] != row).any():
            return False
        expected = self._formula.idf(ends - begins) * self._formula.saturation(counts, length)
        return np.allclose(self._weights[places], expected, rtol=1e-5)

    def _known(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """The numbers of the terms of `text` that the corpus has, ascending, and their counts: int64 [n]."""
        numbers = (self._vocabulary.get(term, -1) for term in self._analyzer.terms(text))
        known = np.array([number for number in numbers if number >= 0], np.int64)
        return np.unique(known, return_counts=True)

    def search(self, queries: Queries, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """Exact, over every passage that shares a term with the query: scores float64 [q, k] and rows int64
        [q, k], k = min(top_k, count), best first, equal scores in row order.

        Other passages have no score that would rank them, so there row -1 with -inf takes their places.
        """
        top_k = min(top_k, self.count)
        scores = np.full((len(queries.texts), top_k), -np.inf)
        rows = np.full((len(queries.texts), top_k), -1, np.int64)
        for i, text in enumerate(queries.texts):
            best, of_best = self._best(text, top_k)
            rows[i, : len(best)], scores[i, : len(best)] = best, of_best
        return scores, rows

    def _best(self, text: str, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """The best rows for a query, at most `top_k`, and their scores.

        The corpus is scored block by block, in memory that does not grow with it.
        """
        terms, counts = self._known(text)
        begins, ends = self._begins[terms], self._begins[terms + 1]
        weights = self._query_weights(counts, ends - begins)
        postings = [self._rows[begin:end] for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]
        rows, scores = np.zeros(0, np.int64), np.zeros(0)
        done = np.zeros(len(terms), np.int64)
        for start in range(0, self.count, BLOCK_ROWS):
            stop = np.int32(
                min(start + BLOCK_ROWS, self.count)
            )  # any other type would have lists copied to it
            upto = np.array([np.searchsorted(found, stop) for found in postings], np.int64)
            block = self._block(start, int(stop), begins + done, begins + upto, weights)
            done = upto
            best = best_rows(block, top_k)
            rows, scores = np.concatenate([rows, start + best]), np.concatenate([scores, block[best]])
            order = np.argsort(-scores, kind="stable")[:top_k]  # earlier blocks have the earlier rows
            rows, scores = rows[order], scores[order]
        return rows, scores

    def _block(
        self, start: int, stop: int, begins: np.ndarray, ends: np.ndarray, weights: np.ndarray
    ) -> np.ndarray:
        """The scores of the rows from `start` to `stop`, which the postings from `begins` to `ends` are of:
        float64 [stop - start], 0 where no term is shared.
        """
        scores = np.zeros(stop - start)
        for begin, end, weight in zip(begins.tolist(), ends.tolist(), weights.tolist(), strict=True):
            rows = self._rows[begin:end] - np.int32(start)
            scores[rows] += weight * self._weights[begin:end].astype(
                np.float64
            )  # a row stands once in a term
        return scores

    def _query_weights(self, counts: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
        """What the terms of a query count, from how often they stand in it and in how many passages: [n]."""
        return counts


class QueryWeightedBm25Index(Bm25Index):
    """BRIGHT's BM25. Safe to search from many threads."""

    def _query_weights(self, counts: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
        return self._formula.idf(frequencies) * self._formula.saturation(counts, counts.sum())


def best_rows(scores: np.ndarray, top_k: int) -> np.ndarray:
    """Of `scores` [n] the rows above 0, at most `top_k`, best first, equal scores in row order: int64."""
    rows = np.flatnonzero(scores > 0)
    if len(rows) > top_k:
        least = np.partition(scores, len(scores) - top_k)[len(scores) - top_k]
        rows = np.flatnonzero(scores >= least)
    return rows[np.argsort(-scores[rows], kind="stable")][:top_k]


def _formula(chosen: Bm25Options, lengths: np.ndarray) -> _Formula:
    # A corpus of stop words alone has the mean 0, and no term that it would be used for.
    return _Formula(chosen, len(lengths), float(lengths.mean()) or 1.0)


def _parameters(chosen: Bm25Options, count: int) -> dict[str, Any]:
    """As bm25s writes them; the delta is of formulas other than Lucene's."""
    return {
        "k1": chosen.k1,
        "b": chosen.b,
        "delta": 0.5,
        "method": "lucene",
        "idf_method": "lucene",
        "dtype": "float32",
        "int_dtype": "int32",
        "num_docs": count,
        "version": bm25s.__version__,
        "backend": "numpy",
    }


def _write_postings(directory: Path, terms: Terms, formula: _Formula) -> None:
    size = int(terms.frequencies.sum())
    idf = formula.idf(terms.frequencies)
    weights = _new_array(directory / WEIGHTS_FILE, np.float32, size)
    rows = _new_array(directory / ROWS_FILE, np.int32, size)

    def put(places: np.ndarray, chunk: Chunk) -> None:
        rows[places] = chunk.rows
        weights[places] = idf[chunk.terms] * formula.saturation(chunk.counts, terms.lengths[chunk.rows])

    scatter(terms, directory, put)
    rows.flush()
    weights.flush()


def _new_array(path: Path, dtype: type, size: int) -> np.memmap:
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(size,))
    with path.open("r+b") as file:  # a disk that is full later on would end the process without a word
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array
