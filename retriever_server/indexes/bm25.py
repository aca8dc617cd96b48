"""BM25: passages ranked by the words they share with the query, rare words first.

Two kinds over the same files, N passages, df(t) of them with term t:

    idf(t)         = ln((N + 1) / (df(t) + 1/2))
    sat(tf, len)   = tf / (tf + k1 (1 - b + b len / mean))
    passage(t)     = idf(t) sat(tf in the passage, |passage|)
    bm25                 sum over the query's terms: tf in the query * passage(t)
    bm25_query_weighted  sum over the query's terms: idf(t) sat(tf in the query, |query|) * passage(t)

The first is Lucene's, and so Anserini's and Pyserini's, with exact lengths where Lucene rounds them. The
second is what BRIGHT's published BM25 figures come from (gensim's LuceneBM25Model on query and passages
alike): it dampens words that a long query repeats. `mean` is that of the passages in both places. Lengths are
numbers of terms without stop words; only terms that the corpus has count in a query.

The files are those of the library bm25s, which opens them, and the passages' lengths. Building and searching
are by hand: bm25s needs the whole corpus in memory to build, and has no query weights. Arrays are
memory-mapped; the vocabulary is in memory.
"""

import json
import os
from pathlib import Path
from typing import cast

import bm25s
import numpy as np

from retriever_server.errors import BUILD_AGAIN, RetrieverError
from retriever_server.indexes import IndexSources, Needs, Queries, ScoredRows, Settings, pad_ranked
from retriever_server.indexes.analysis import Analyzer
from retriever_server.indexes.options import Bm25Options, IndexOptions
from retriever_server.indexes.postings import Terms, count_terms, scatter

WEIGHTS_FILE = "data.csc.index.npy"  # idf times saturation of each posting, float32
ROWS_FILE = "indices.csc.index.npy"  # row of each posting, int32, ascending within a term
BEGINS_FILE = "indptr.csc.index.npy"  # where each term's postings begin, int64 [terms + 1]
VOCABULARY_FILE = "vocab.index.json"  # term -> its number
PARAMETERS_FILE = "params.index.json"  # k1, b, and what bm25s needs
LENGTHS_FILE = "lengths.npy"  # terms of each passage, int32 [passages]
FILES = (WEIGHTS_FILE, ROWS_FILE, BEGINS_FILE, VOCABULARY_FILE, PARAMETERS_FILE, LENGTHS_FILE)
PASSAGE_BYTES = 8 * 80  # a posting takes 8, and a passage of 100 words has some 60 different terms
VOCABULARY_BYTES = 50  # per passage: in large corpora each has a third of a new word
CHUNK_BYTES = 500_000_000
BLOCK_ROWS = 1 << 18  # scored at a time: their scores stay in the processor's cache


class _Formula:
    """The scores over passages of these `lengths`."""

    def __init__(self, options: Bm25Options, lengths: np.ndarray) -> None:
        self.options, self.passages = options, len(lengths)
        self.mean_length = float(lengths.mean()) or 1.0  # stop words alone have mean 0: no term needs it

    def idf(self, frequencies: np.ndarray) -> np.ndarray:
        return np.log((self.passages + 1) / (frequencies + 0.5))

    def saturation(self, counts: np.ndarray, lengths: np.ndarray | float) -> np.ndarray:
        k1, b = self.options.k1, self.options.b
        return counts / (counts + k1 * (1 - b + b * lengths / self.mean_length))


class Bm25Index:
    """Lucene's BM25. Thread-safe."""

    dense = False

    def __init__(self, directory: Path, settings: Settings) -> None:
        """Open the files, which determine the parameters; RetrieverError if they are not such an index."""
        try:
            opened = bm25s.BM25.load(directory, mmap=True)
            self._lengths = np.load(directory / LENGTHS_FILE, mmap_mode="r")
        except (ValueError, KeyError, TypeError) as error:
            raise RetrieverError(f"{directory}: not a BM25 index ({error}); {BUILD_AGAIN}") from error
        # Plain arrays over the mapped files: slicing them costs less.
        self._weights, self._rows, self._begins = (
            np.asarray(opened.scores[name]) for name in ("data", "indices", "indptr")
        )
        self._vocabulary: dict[str, int] = opened.vocab_dict
        self.count: int = len(self._lengths)
        if len(self._begins) != len(self._vocabulary) + 1 or opened.scores["num_docs"] != self.count:
            raise RetrieverError(f"{directory}: the files are not of one BM25 index; {BUILD_AGAIN}")
        self._formula = _Formula(Bm25Options(k1=opened.k1, b=opened.b), self._lengths)
        self._analyzer = Analyzer()

    @classmethod
    def needs(cls, count: int, dimension: int | None, options: IndexOptions) -> Needs:
        """The files, and the same again for the intermediate counts; in memory the vocabulary and a chunk."""
        return Needs(disk=2 * PASSAGE_BYTES * count, memory=CHUNK_BYTES + VOCABULARY_BYTES * count)

    @classmethod
    def build(cls, sources: IndexSources, directory: Path) -> list[str]:
        """Analyse the passages and write the index; an interrupted build starts over."""
        options = cast(Bm25Options, sources.options)
        terms = count_terms(sources.corpus, directory)
        _write_postings(directory, terms, _Formula(options, terms.lengths))
        np.save(directory / LENGTHS_FILE, terms.lengths)
        np.save(directory / BEGINS_FILE, np.concatenate([[0], np.cumsum(terms.frequencies)]))
        (directory / VOCABULARY_FILE).write_bytes(json.dumps(terms.vocabulary, ensure_ascii=False).encode())
        # As bm25s writes them; delta is of formulas other than Lucene's.
        parameters = options.model_dump() | {"delta": 0.5, "method": "lucene", "idf_method": "lucene"}
        parameters |= {"dtype": "float32", "int_dtype": "int32", "num_docs": len(terms.lengths)}
        parameters |= {"version": bm25s.__version__, "backend": "numpy"}
        (directory / PARAMETERS_FILE).write_text(json.dumps(parameters) + "\n")
        return list(FILES)

    def check(self, rows: np.ndarray, texts: list[str], vectors: np.ndarray | None) -> np.ndarray:
        """Whether each row has the length and term weights of its text, analysed again."""
        return np.array(
            [self._holds(row, text) for row, text in zip(rows.tolist(), texts, strict=True)], bool
        )

    def _holds(self, row: int, text: str) -> bool:
        terms, counts = self._known(text)
        length = int(self._lengths[row])
        if counts.sum() != length or len(self._analyzer.terms(text)) != length:
            return False
        begins, ends = self._begins[terms], self._begins[terms + 1]
        places = begins + _rows_before(self._postings(terms), row)
        if (places == ends).any() or (self._rows[places] != row).any():
            return False
        expected = self._formula.idf(ends - begins) * self._formula.saturation(counts, length)
        return np.allclose(self._weights[places], expected, rtol=1e-5)

    def _known(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """The numbers of the terms of `text` that the corpus has, ascending, and their counts: int64 [n]."""
        numbers = (self._vocabulary.get(term, -1) for term in self._analyzer.terms(text))
        known = np.array([number for number in numbers if number >= 0], np.int64)
        return np.unique(known, return_counts=True)

    def _postings(self, terms: np.ndarray) -> list[np.ndarray]:
        """The rows of each term."""
        begins, ends = self._begins[terms].tolist(), self._begins[terms + 1].tolist()
        return [self._rows[begin:end] for begin, end in zip(begins, ends, strict=True)]

    def search(self, queries: Queries, top_k: int) -> ScoredRows:
        """As in the protocol, exact over every passage that shares a term with the query.

        The other passages have no score to rank them by: row -1 with score -inf takes their places.
        """
        top_k = min(top_k, self.count)
        return pad_ranked([self._best(text, top_k) for text in queries.texts], top_k)

    def _best(self, text: str, top_k: int) -> ScoredRows:
        """A query's best scores, at most `top_k`, and their rows; memory does not grow with the corpus."""
        terms, counts = self._known(text)
        begins = self._begins[terms]
        weights = self._query_weights(counts, self._begins[terms + 1] - begins)
        postings = self._postings(terms)
        rows, scores = np.zeros(0, np.int64), np.zeros(0)
        scored = np.zeros(len(terms), np.int64)
        for start in range(0, self.count, BLOCK_ROWS):
            stop = min(start + BLOCK_ROWS, self.count)
            upto = _rows_before(postings, stop)
            block = self._block(start, stop, begins + scored, begins + upto, weights)
            scored = upto
            best = best_rows(block, top_k)
            rows, scores = np.concatenate([rows, start + best]), np.concatenate([scores, block[best]])
            order = np.argsort(-scores, kind="stable")[:top_k]  # earlier blocks have the earlier rows
            rows, scores = rows[order], scores[order]
        return scores, rows

    def _block(
        self, start: int, stop: int, begins: np.ndarray, ends: np.ndarray, weights: np.ndarray
    ) -> np.ndarray:
        """Scores of the rows `start` to `stop`, with postings `begins` to `ends`: float64 [rows]."""
        scores = np.zeros(stop - start)
        for begin, end, weight in zip(begins.tolist(), ends.tolist(), weights.tolist(), strict=True):
            rows = self._rows[begin:end] - np.int32(start)
            scores[rows] += weight * self._weights[begin:end].astype(np.float64)  # a term has a row once
        return scores

    def _query_weights(self, counts: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
        """The weights of a query's terms, from their counts in it and the passages that have them: [n]."""
        return counts


class QueryWeightedBm25Index(Bm25Index):
    """BRIGHT's BM25. Thread-safe."""

    def _query_weights(self, counts: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
        return self._formula.idf(frequencies) * self._formula.saturation(counts, counts.sum())


def _rows_before(postings: list[np.ndarray], row: int) -> np.ndarray:
    """How many rows of each posting list come before `row`: int64 [lists]."""
    # The row as int32: any other type would have each list converted to that type.
    return np.array([np.searchsorted(rows, np.int32(row)) for rows in postings], np.int64)


def best_rows(scores: np.ndarray, top_k: int) -> np.ndarray:
    """The rows of `scores` [n] above 0, at most `top_k`, best first, equal scores in row order: int64."""
    rows = np.flatnonzero(scores > 0)
    if len(rows) > top_k:
        least = np.partition(scores, len(scores) - top_k)[len(scores) - top_k]
        rows = np.flatnonzero(scores >= least)
    return rows[np.argsort(-scores[rows], kind="stable")][:top_k]


def _write_postings(directory: Path, terms: Terms, formula: _Formula) -> None:
    size = int(terms.frequencies.sum())
    idf = formula.idf(terms.frequencies)
    weights = _new_array(directory / WEIGHTS_FILE, np.float32, size)
    rows = _new_array(directory / ROWS_FILE, np.int32, size)
    for places, chunk in scatter(terms, directory):
        rows[places] = chunk.rows
        weights[places] = idf[chunk.terms] * formula.saturation(chunk.counts, terms.lengths[chunk.rows])
    rows.flush()
    weights.flush()


def _new_array(path: Path, dtype: type, size: int) -> np.memmap:
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(size,))
    with path.open("r+b") as file:  # a disk that fills up later would kill the process without a message
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array
