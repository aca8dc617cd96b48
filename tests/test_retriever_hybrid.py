"""Hybrid: the lists of a dense and a lexical index, joined as by hand, from one build to the answers."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from retriever_process import search_store
from test_retriever_bm25 import DEFAULT, PASSAGES, QUERIES, corpus_of, write_rows

from retriever_server.__main__ import main
from retriever_server.building.store import open_store
from retriever_server.errors import RetrieverError
from retriever_server.indexes import IndexSources, Queries, Settings, pad_ranked
from retriever_server.indexes.bm25 import Bm25Index, QueryWeightedBm25Index
from retriever_server.indexes.flat import FlatIndex, FlatWriter
from retriever_server.indexes.hybrid import HybridIndex, join_lists
from retriever_server.indexes.options import HybridOptions, parse_options


def made_vectors(count: int) -> np.ndarray:
    vectors = np.random.default_rng(count).normal(size=(count, 8)).astype("f4")
    unit: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def build(folder: Path, *words: str) -> tuple[list[str], HybridIndex]:
    options = HybridOptions(**parse_options("hybrid", words))
    with FlatWriter(folder / "vectors.faiss", len(PASSAGES), 8) as file:
        file.append(made_vectors(len(PASSAGES)))
    sources = IndexSources(corpus_of(PASSAGES, folder), folder / "vectors.faiss", options)
    return HybridIndex.build(sources, folder), HybridIndex(folder, Settings(options))


def by_hand(lists: list[list[int]]) -> list[tuple[float, int]]:
    scores: dict[int, float] = {}
    for rows in lists:
        for rank, row in enumerate((row for row in rows if row >= 0), start=1):
            scores[row] = scores.get(row, 0.0) + 1 / (60 + rank)
    return sorted(((score, row) for row, score in scores.items()), key=lambda found: (-found[0], found[1]))


@settings(max_examples=100)
@given(
    st.lists(
        st.tuples(st.permutations(range(12)), st.integers(0, 12)).map(lambda pair: pair[0][: pair[1]]),
        min_size=2,
        max_size=2,
    ),
    st.integers(1, 30),
)
def test_fusion_is_the_sum_of_reciprocal_ranks_with_ties_in_row_order(
    lists: list[list[int]], top_k: int
) -> None:
    padded = tuple(np.array([*rows, *[-1] * (12 - len(rows))]) for rows in lists)
    [scores], [rows] = pad_ranked([join_lists(padded, top_k)], top_k)
    expected = by_hand(lists)[:top_k]
    assert rows.tolist() == [row for _, row in expected] + [-1] * (top_k - len(expected))
    assert np.allclose(scores[: len(expected)], [score for score, _ in expected])
    assert (scores[len(expected) :] == -np.inf).all()


@pytest.mark.parametrize(
    ("options", "kind", "depth"),
    [
        ((), Bm25Index, 1000),
        (("lexical=bm25_query_weighted", "depth=2", "k1=2"), QueryWeightedBm25Index, 2),
    ],
)
def test_search_joins_the_lists_of_both_parts(
    options: tuple[str, ...], kind: type[Bm25Index], depth: int, tmp_path: Path
) -> None:
    files, index = build(tmp_path, *options)
    assert all((tmp_path / name).is_file() for name in files) and "dense/index.faiss" in files
    queries = Queries([*QUERIES, "unknown"], made_vectors(len(QUERIES) + 1))
    dense, lexical = FlatIndex(tmp_path / "dense"), kind(tmp_path / "lexical", DEFAULT)
    lists = [part.search(queries, depth)[1].tolist() for part in (dense, lexical)]
    scores, rows = index.search(queries, 4)
    for i, of_query in enumerate(zip(*lists, strict=True)):
        expected = by_hand(list(of_query))[:4]
        assert rows[i].tolist() == ([row for _, row in expected] + [-1] * 4)[:4]
        assert np.allclose(scores[i, : len(expected)], [score for score, _ in expected])
        shorter_scores, shorter_rows = index.search(
            Queries([queries.texts[i]], queries.vectors[i : i + 1]), 2
        )
        assert np.array_equal(shorter_rows[0], rows[i, :2])
        assert np.array_equal(shorter_scores[0], scores[i, :2])


def test_check_asks_both_parts(tmp_path: Path) -> None:
    _, index = build(tmp_path)
    rows, vectors = np.arange(len(PASSAGES)), made_vectors(len(PASSAGES))
    assert index.check(rows, PASSAGES, vectors).all()
    assert index.check(rows, PASSAGES, -vectors).sum() == 0
    assert index.check(rows, ["Rome"] * len(PASSAGES), vectors).sum() == 0


def test_wrong_options_are_told() -> None:
    for word, complaint in (
        ("depth=0", "greater than or equal to 1"),
        ("depth=many", "valid integer"),
        ("dense=bm25", "'flat', 'flat_fp16', 'sq8', 'hnsw' or 'ivfpq'"),
        ("lexical=flat", "'bm25' or 'bm25_query_weighted'"),
        ("m=32", 'no option "m"'),
    ):
        with pytest.raises(RetrieverError, match=complaint):
            parse_options("hybrid", [word])


def test_command_builds_what_the_service_answers_from(tmp_path: Path) -> None:
    corpus = write_rows(tmp_path / "corpus.jsonl", PASSAGES)
    command = ["build", str(corpus), str(tmp_path / "index"), "--index", "hybrid"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    store = open_store(tmp_path / "index")
    assert store.manifest.encoder == "minilm" and "lexical/lengths.npy" in store.manifest.files
    assert not (tmp_path / "index" / "vectors.faiss").exists()
    [[best, *others]] = search_store(store, ["the Tiber floods"], 10)
    assert best.id == "4" and best.score == pytest.approx(2 / 61) and len(others) == len(PASSAGES) - 1
    (tmp_path / "index" / "dense" / "index.faiss").write_bytes(b"")
    with pytest.raises(RetrieverError, match="dense/index.faiss is not the file"):
        open_store(tmp_path / "index")
