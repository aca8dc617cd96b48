"""Flat index: brute force in values and order, ties included; files that can be gone on with."""

import os
import tempfile
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retriever_server.errors import RetrieverError
from retriever_server.indexes import Queries
from retriever_server.indexes.flat import FlatIndex, FlatWriter


def index_over(vectors: np.ndarray, directory: Path) -> FlatIndex:
    with FlatWriter(directory / "index.faiss", *vectors.shape) as file:
        for chunk in np.array_split(vectors, 3):
            file.append(chunk)
    return FlatIndex(directory)


def brute_force(vectors: np.ndarray, query: np.ndarray, top_k: int) -> tuple[list[float], list[int]]:
    scores = [round(float(np.dot(vector.astype(float), query.astype(float))), 6) for vector in vectors]
    rows = sorted(range(len(vectors)), key=lambda row: (-scores[row], row))[:top_k]
    return [scores[row] for row in rows], rows


@settings(max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 200),
    st.integers(1, 40),
    st.integers(1, 250),
    st.sampled_from([1, 3, 1000]),
)
def test_search_equals_brute_force_with_ties(
    seed: int, count: int, queries: int, top_k: int, values: int
) -> None:
    """With few distinct values most scores are equal, also across the end of the list; with many, few are."""
    random = np.random.default_rng(seed)
    vectors, asked = (
        random.integers(-values, values + 1, (n, 8)).astype("f4") / values for n in (count, queries)
    )
    with tempfile.TemporaryDirectory() as directory:
        scores, rows = index_over(vectors, Path(directory)).search(Queries([], asked), top_k)
    for i, query in enumerate(asked):
        assert (scores[i].tolist(), rows[i].tolist()) == brute_force(vectors, query, top_k)


def test_a_tie_costs_its_own_query_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retriever_server.indexes.faiss_file.RANKED_ROWS", 100)
    vectors = np.random.default_rng(0).normal(size=(4000, 16)).astype("f4")
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[1::4] = vectors[1]  # a thousand equal passages
    index = index_over(vectors, tmp_path)
    asked: list[tuple[int, int]] = []
    nearest = index._nearest
    monkeypatch.setattr(
        index,
        "_nearest",
        lambda queries, count: asked.append((len(queries), count)) or nearest(queries, count),
    )
    queries = vectors[:60:2].copy()
    queries[[3, 7]] = vectors[1]
    _, rows = index.search(Queries([], queries), 5)
    assert asked[0] == (30, 21) and {count for count, _ in asked[1:]} == {2}
    assert rows[3].tolist() == rows[7].tolist() == [1, 5, 9, 13, 17]
    assert all(row[0] == 2 * place for place, row in enumerate(rows.tolist()) if place not in (3, 7))
    asked.clear()
    monkeypatch.setattr("retriever_server.indexes.faiss_file.MOST_FETCHED", 1)
    assert np.array_equal(index.search(Queries([], queries), 5)[1], rows)
    assert {count for count, _ in asked[1:]} == {1}


def test_answer_does_not_depend_on_the_batch_or_on_the_length_asked_for(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    vectors, asked = random.normal(size=(3000, 64)).astype("f4"), random.normal(size=(50, 64)).astype("f4")
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = index_over(vectors, tmp_path)
    scores, rows = index.search(Queries([], asked), 100)
    for i in range(len(asked)):
        alone_scores, alone_rows = index.search(Queries([], asked[i : i + 1]), 7)
        assert np.array_equal(alone_rows[0], rows[i, :7])
        assert np.array_equal(alone_scores[0], scores[i, :7])


def test_the_file_is_what_faiss_itself_writes(tmp_path: Path) -> None:
    vectors = np.random.default_rng(1).normal(size=(37, 12)).astype("f4")
    index_over(vectors, tmp_path)
    own = faiss.IndexFlatIP(12)
    own.add(vectors)
    faiss.write_index(own, str(tmp_path / "own.faiss"))
    assert (tmp_path / "index.faiss").read_bytes() == (tmp_path / "own.faiss").read_bytes()


def test_files_that_are_no_flat_inner_product_index_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "index.faiss"
    vectors = np.eye(4, dtype="f4")
    for other in (faiss.IndexFlatL2(4), faiss.IndexHNSWFlat(4, 8, faiss.METRIC_INNER_PRODUCT)):
        other.add(vectors)
        faiss.write_index(other, str(path))
        with pytest.raises(RetrieverError, match='the kind "flat" is an IndexFlat'):
            FlatIndex(tmp_path)
    path.unlink()
    with FlatWriter(path, 5, 4) as file:
        file.append(vectors)  # a row is lacking
    with pytest.raises(RetrieverError, match="FAISS cannot read it"):
        FlatIndex(tmp_path)


def test_a_half_written_file_is_gone_on_with_after_its_last_whole_row(tmp_path: Path) -> None:
    vectors = np.random.default_rng(1).normal(size=(37, 12)).astype("f4")
    path = tmp_path / "index.faiss"
    for written in (0, 20, 45 + 20 * 48 + 7):  # within the header, after it, within a row
        path.unlink(missing_ok=True)
        with FlatWriter(path, *vectors.shape) as file:
            file.append(vectors[:30])
        os.truncate(path, written)
        with FlatWriter(path, *vectors.shape) as file:
            assert file.rows == max(0, (written - 45) // 48)
            file.append(vectors[file.rows :])
        assert np.array_equal(FlatIndex(tmp_path).vectors(np.arange(37)), vectors)
