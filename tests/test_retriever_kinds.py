"""Index kinds: each is built by its name, finds what flat finds, keeps its options, and refuses what is not
its own.
"""

import json
import shutil
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from retriever_process import search_store

from retriever_server.__main__ import main
from retriever_server.building.build import SAMPLE_ROWS
from retriever_server.building.store import Manifest, open_store
from retriever_server.errors import RetrieverError
from retriever_server.indexes import KINDS, Queries, Settings, index_class, open_index, screen
from retriever_server.indexes.faiss_file import FaissIndex
from retriever_server.indexes.flat import FlatIndex, FlatWriter
from retriever_server.indexes.gpu import RESERVE, Card, load, shares, what_lacks
from retriever_server.indexes.options import HnswOptions, IndexOptions, IvfPqOptions, options_of
from retriever_server.indexes.scalar import write_codes
from retriever_server.indexes.screen import Screen
from retriever_server.memory import require_memory
from retriever_server.models.encoder import Encoder, set_threads

PLACES = ("Rome", "Zürich", "Cairo", "Lima", "Oslo", "Perth", "Quito", "Kyoto", "Dakar", "Bergen")
TRADES = ("baker", "sailor", "poet", "judge", "farmer", "painter", "doctor", "spy", "monk", "clockmaker")
DEEDS = ("was born", "fell ill", "lost a bet", "built a house", "learned Latin")
WORDS = ("last", "merry", "silent")
DENSE = tuple(kind for kind in KINDS if issubclass(index_class(kind), FaissIndex))
LEAST_RECALL = {"flat": 1.0, "flat_fp16": 0.99, "sq8": 0.97, "hnsw": 0.97, "ivfpq": 0.90}


def command(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def succeed(*arguments: object) -> Result:
    result = command(*arguments)
    assert result.exit_code == 0, result.output
    return result


def one_line_error(*arguments: object) -> str:
    """What the command, which must fail, says in its only line of error."""
    result = command(*arguments)
    assert result.exit_code == 1, result.output
    [line] = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert result.output.endswith(line + "\n"), result.output
    return line


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    set_threads(1)  # on a busy machine two threads that wait for each other take longer than one


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with corpus.jsonl, 1500 short passages, and an index of each dense kind, by its name."""
    folder = tmp_path_factory.mktemp("made")
    texts = [
        f"{place}\nThe {word} {trade} of {place} {deed}."
        for place in PLACES
        for trade in TRADES
        for deed in DEEDS
        for word in WORDS
    ]
    rows = [json.dumps({"id": number, "contents": text}) + "\n" for number, text in enumerate(texts)]
    (folder / "corpus.jsonl").write_text("".join(rows))
    succeed("build", folder / "corpus.jsonl", folder / "flat")
    for kind in DENSE[1:]:
        build_kind(folder, folder / kind, kind)
    return folder


@pytest.fixture(scope="module")
def queries() -> Queries:
    """50 of them."""
    texts = [f"Which {trade} {deed}?" for trade in TRADES for deed in DEEDS]
    return Queries(texts, Encoder("minilm").encode_queries(texts))


def build_kind(made: Path, target: Path, kind: str, *words: str) -> Path:
    options = [part for word in words for part in ("--index-option", word)]
    vectors = ("--vectors", made / "flat" / "index.faiss")
    succeed("build", made / "corpus.jsonl", target, "--index", kind, *vectors, *options)
    return target


@pytest.mark.parametrize("kind", DENSE)
def test_each_kind_is_built_by_its_name_and_finds_what_flat_finds(
    made: Path, queries: Queries, kind: str
) -> None:
    store = open_store(made / kind)
    scores, rows = store.index.search(queries, 10)
    true_scores, true_rows = open_store(made / "flat").index.search(queries, 10)
    found = np.mean([np.isin(true, row).mean() for true, row in zip(true_rows, rows, strict=True)])
    assert found >= LEAST_RECALL[kind]
    assert scores.dtype == np.float64 and rows.dtype == np.int64
    assert (np.diff(scores) <= 0).all() and np.abs(scores - true_scores).max() < 0.02
    assert store.manifest.kind == kind and list(store.manifest.files) == ["index.faiss"]
    assert store.manifest.options == options_of(kind)().model_dump()
    assert sorted(path.name for path in made.iterdir()) == sorted(["corpus.jsonl", *DENSE])
    shorter_scores, shorter_rows = store.index.search(Queries([], queries.vectors[3:5]), 4)
    assert np.array_equal(shorter_rows, rows[3:5, :4]) and np.array_equal(shorter_scores, scores[3:5, :4])


def test_what_is_encoded_for_it_makes_the_same_index_as_given_vectors(made: Path, tmp_path: Path) -> None:
    lines = (made / "corpus.jsonl").read_text().splitlines(keepends=True)[:60]
    (tmp_path / "corpus.jsonl").write_text("".join(lines))
    for folder, kind in (("flat", "flat"), ("encoded", "hnsw")):
        succeed("build", tmp_path / "corpus.jsonl", tmp_path / folder, "--index", kind)
    given = build_kind(tmp_path, tmp_path / "given", "hnsw")
    assert Manifest.read(given) == Manifest.read(tmp_path / "encoded")


def test_rows_that_are_not_found_are_marked_and_not_answered(made: Path) -> None:
    store = open_store(made / "ivfpq", index_options=["nprobe=1"])
    scores, rows = store.index.search(Queries([], np.eye(1, 384, dtype="f4")), 1500)
    assert rows.shape == scores.shape == (1, 1500)
    lacking = rows[0] == -1
    assert 0 < lacking.sum() < 1500 and lacking[-lacking.sum() :].all()
    assert (scores[0][lacking] == -np.inf).all() and np.isfinite(scores[0][~lacking]).all()
    [hits] = search_store(store, ["a poet"], 1500)
    assert 0 < len(hits) < 1500


def test_options_are_kept_and_applied_and_some_can_be_chosen_when_serving(made: Path, tmp_path: Path) -> None:
    index = build_kind(made, tmp_path / "index", "hnsw", "M=8", "efConstruction=20", "efSearch=33")
    assert Manifest.read(index).options == {"M": 8, "efConstruction": 20, "efSearch": 33, "storage": "fp16"}
    assert open_store(index).index._index.hnsw.efSearch == 33
    assert open_store(index, index_options=["efSearch=50"]).index._index.hnsw.efSearch == 50
    with pytest.raises(RetrieverError, match="--index-option M: it was decided when the index was built"):
        open_store(index, index_options=["M=8"])

    again = ("build", made / "corpus.jsonl", index, "--index", "hnsw", "--index-option")
    assert "already built" in succeed(*again, "M=8").output
    assert "another index option" in one_line_error(*again, "M=16")


def test_wrong_options_are_told_in_one_line(made: Path, tmp_path: Path) -> None:
    def build_with(kind: str, word: str) -> str:
        corpus = made / "corpus.jsonl"
        return one_line_error("build", corpus, tmp_path / "i", "--index", kind, "--index-option", word)

    assert "has no option" in (line := build_with("hnsw", "ef=3")) and "M, efConstruction, efSearch" in line
    assert 'kind "flat" has no option "M"; it has: none' in build_with("flat", "M=3")
    assert "M=many: Input should be a valid integer" in build_with("hnsw", "M=many")
    assert "M=1: Input should be greater than or equal to 4" in build_with("hnsw", "M=1")
    assert "not of the form key=value" in build_with("hnsw", "M")
    assert "M=5 does not divide the vectors' 384 numbers" in build_with("ivfpq", "M=5")
    assert "nlist=100: 1,500 passages train at most 23" in build_with("ivfpq", "nlist=100")
    assert "no index kind" in one_line_error(
        "build", made / "corpus.jsonl", tmp_path / "i", "--index", "tree"
    )
    assert list(tmp_path.iterdir()) == []
    shown = command("build", "--help").output
    assert all(f"{key}=" in shown for key in (*HnswOptions.model_fields, *IvfPqOptions.model_fields))


def test_too_small_a_corpus_for_ivfpq_is_told(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text('{"id": 1, "contents": "one"}\n')
    told = one_line_error("build", tmp_path / "corpus.jsonl", tmp_path / "i", "--index", "ivfpq")
    assert "needs 1,000 passages to learn from, the corpus has 1: choose flat" in told


def test_given_vectors_must_be_those_of_the_corpus(made: Path, tmp_path: Path) -> None:
    vectors = made / "flat" / "index.faiss"
    turned = tmp_path / "turned.faiss"
    write_flat(faiss.read_index(str(vectors)).reconstruct_n()[::-1], turned)
    arguments = ("build", made / "corpus.jsonl", tmp_path / "i", "--index", "hnsw", "--vectors")
    assert "is not passage" in one_line_error(*arguments, turned)
    assert "excludes --faiss-index" in one_line_error(*arguments, vectors, "--faiss-index", vectors)
    told = one_line_error(*arguments, made / "sq8" / "index.faiss")
    assert 'IndexScalarQuantizer, by inner product, but the kind "flat" is' in told


@pytest.mark.parametrize("factory", ["HNSW16,Flat", "HNSW16_SQ8"])
def test_a_published_graph_is_adopted(made: Path, tmp_path: Path, queries: Queries, factory: str) -> None:
    published = faiss.index_factory(384, factory, faiss.METRIC_INNER_PRODUCT)
    vectors = faiss.read_index(str(made / "flat" / "index.faiss")).reconstruct_n()
    published.train(vectors)
    published.add(vectors)
    faiss.write_index(published, str(tmp_path / "published.index"))
    adopt = (
        "build",
        made / "corpus.jsonl",
        tmp_path / "index",
        "--faiss-index",
        tmp_path / "published.index",
    )
    assert "M: the adopted index determines it" in one_line_error(
        *adopt, "--index", "hnsw", "--index-option", "M=8"
    )
    succeed(*adopt, "--index", "hnsw", "--index-option", "efSearch=200")
    store = open_store(tmp_path / "index")
    assert store.manifest.options == {"efSearch": 200}
    flat_scores, flat_rows = open_store(made / "flat").index.search(queries, 5)
    scores, rows = store.index.search(queries, 5)
    assert np.mean(rows == flat_rows) > 0.8
    if factory == "HNSW16,Flat":  # the vectors themselves: where the row is the same, so is the score
        assert np.array_equal(scores[rows == flat_rows], flat_scores[rows == flat_rows])


def test_an_index_of_another_kind_is_not_adopted(made: Path, tmp_path: Path) -> None:
    for asked, kind in zip(DENSE, (*DENSE[1:], "flat"), strict=True):
        file = made / kind / "index.faiss"
        adopt = ("--index", asked, "--faiss-index", file)
        told = one_line_error("build", made / "corpus.jsonl", tmp_path / "i", *adopt)
        assert f"it is an {type(faiss.read_index(str(file))).__name__}" in told
        assert f'but the kind "{asked}" is an Index' in told
    by_distance = faiss.IndexHNSWFlat(384, 8)
    faiss.write_index(by_distance, str(tmp_path / "l2"))
    adopt = ("--index", "hnsw", "--faiss-index", tmp_path / "l2")
    assert "by another distance" in one_line_error("build", made / "corpus.jsonl", tmp_path / "i", *adopt)


def test_rows_in_another_order_are_refused_by_each_kind(made: Path, tmp_path: Path) -> None:
    rows = (made / "corpus.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "turned.jsonl").write_text("".join(rows[::-1]))
    for kind in DENSE:
        index = made / kind / "index.faiss"
        arguments = ("build", tmp_path / "turned.jsonl", tmp_path / "i", "--index", kind)
        assert f"of {SAMPLE_ROWS} rows" in one_line_error(*arguments, "--faiss-index", index)


def unit_vectors(seed: int, count: int, dimension: int, values: int) -> np.ndarray:
    """Of few distinct values, so that many scores are equal."""
    vectors = np.random.default_rng(seed).integers(-values, values + 1, (count, dimension)).astype("f4")
    vectors[:, 0] += 0.5  # none is nought
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def write_flat(vectors: np.ndarray, path: Path) -> Path:
    path.unlink(missing_ok=True)
    with FlatWriter(path, *vectors.shape) as file:
        file.append(vectors)
    return path


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(("values", "shards"), [(1, 1), (1, 3), (1000, 1), (1000, 3)])
def test_a_screened_search_over_shards_equals_the_exact_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, values: int, shards: int
) -> None:
    """What GPUs do, here on the CPU: the answers are those of flat to the last digit and tie."""
    monkeypatch.setattr(screen, "BLOCK_ROWS", {"cpu": 200})
    monkeypatch.setattr(screen, "product_dtype", lambda device: dtype)
    for seed, count, top_k in ((0, 2003, 10), (1, 700, 60), (2, 5, 10), (3, 300, 300)):
        vectors, asked = unit_vectors(seed, count, 16, values), unit_vectors(seed + 9, 20, 16, values)
        write_flat(vectors, tmp_path / "index.faiss")
        exact, screened = FlatIndex(tmp_path), FlatIndex(tmp_path)
        ends = np.linspace(0, count, shards + 1).astype(int)
        screened._screen = Screen(load(vectors, [("cpu", int(rows)) for rows in np.diff(ends)]))
        expected, found = (index.search(Queries([], asked), top_k) for index in (exact, screened))
        assert np.array_equal(found[1], expected[1]) and np.array_equal(found[0], expected[0])


def test_flat_fp16_is_brute_force_over_the_numbers_in_half_precision(made: Path, queries: Queries) -> None:
    index = open_store(made / "flat_fp16").index
    exact, stored = (
        faiss.read_index(str(made / kind / "index.faiss")).reconstruct_n() for kind in ("flat", "flat_fp16")
    )
    assert np.array_equal(stored, stored.astype(np.float16))
    assert (np.abs(stored - exact) <= np.abs(exact) * 2.0**-11 + 2.0**-25).all()
    products = (queries.vectors.astype(np.float64) @ stored.T.astype(np.float64)).round(6)
    scores, rows = index.search(queries, 25)
    expected = np.stack([np.lexsort((np.arange(len(stored)), -product))[:25] for product in products])
    assert np.array_equal(rows, expected)
    assert np.allclose(scores, np.take_along_axis(products, expected, axis=1), atol=1e-9)


@pytest.mark.parametrize("quantizer", [faiss.ScalarQuantizer.QT_fp16, faiss.ScalarQuantizer.QT_8bit])
def test_codes_written_in_chunks_are_the_file_that_faiss_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantizer: int
) -> None:
    monkeypatch.setattr("retriever_server.indexes.faiss_file.CHUNK_ROWS", 100)
    vectors = unit_vectors(0, 1037, 24, 1000)
    index = faiss.IndexScalarQuantizer(24, quantizer, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    write_codes(index, vectors, tmp_path / "written")
    index.add(vectors)
    faiss.write_index(index, str(tmp_path / "faiss"))
    assert (tmp_path / "written").read_bytes() == (tmp_path / "faiss").read_bytes()


def test_too_little_main_memory_is_told_before_it_is_taken() -> None:
    require_memory(5 * 10**9, "building", "take flat", free=5 * 10**9)
    with pytest.raises(
        RetrieverError, match=r"building takes 38\.2 GB of main memory, 5\.0 GB are free: take"
    ):
        require_memory(38_200_000_000, "building", "take flat", free=5 * 10**9)
    # The published figures of wiki-18: what a user with 32 GB must be told.
    needs = index_class("hnsw").needs(21_015_324, 768, HnswOptions())
    assert 32e9 < needs.disk < needs.memory < 45e9
    assert index_class("flat_fp16").needs(21_015_324, 768, IndexOptions()).memory < 1e9


def test_where_vectors_go_on_gpus() -> None:
    gb = 10**9
    two = [Card("cuda:0", RESERVE + 30 * gb), Card("cuda:1", RESERVE + 10 * gb)]
    assert what_lacks(40 * gb, two) == ""
    assert shares(1000, two) == [("cuda:0", 750), ("cuda:1", 250)]
    assert shares(7, [Card("cuda:0", RESERVE // 2), two[1]]) == [("cuda:1", 7)]
    assert "take 41.0 GB of GPU memory, 40.0 GB are free (2 GB of each of 2 kept" in what_lacks(41 * gb, two)
    assert what_lacks(1, []) == "torch finds no GPU"


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_without_a_gpu_the_cpu_is_taken_loudly_or_the_search_refused(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RetrieverError, match="--index-device gpu: torch finds no GPU"):
        open_store(made / "flat", index_device="gpu")
    serve = ("serve", made / "flat", "--port", 0, "--index-device", "gpu")
    assert "torch finds no GPU" in one_line_error(*serve)
    open_store(made / "flat", index_device="auto")
    assert "WARNING: the index is searched on the CPU: torch finds no GPU" in capsys.readouterr().err
    with pytest.raises(RetrieverError, match='"hnsw" is searched on the CPU'):
        open_index("hnsw", tmp_path, Settings(HnswOptions(), "gpu"))


def test_an_index_of_format_2_without_options_still_opens(made: Path, tmp_path: Path) -> None:
    index = shutil.copytree(made / "flat", tmp_path / "index")
    manifest = json.loads((index / "manifest.json").read_text())
    del manifest["options"]
    (index / "manifest.json").write_text(json.dumps(manifest))
    assert open_store(index).manifest.options == {}
