"""datasets/musique.py and datasets/wiki18.py against a stand-in of the hub, and their command lines."""

import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from test_data_standin import HubStandIn, hub_stand_in

from research.datasets import flashrag, musique, wiki18
from research.datasets.questions import read_questions
from research.errors import DataError

ROOT = Path(__file__).parents[1]
PASSAGES, DIMENSION = 40, 8
CORPUS = "".join(
    json.dumps({"id": str(n), "contents": f'"Title {n}"\nText é {n}'}, ensure_ascii=False) + "\n"
    for n in range(PASSAGES)
).encode()
HEADER = wiki18.INDEX_HEADER.pack(
    b"IxFI", DIMENSION, PASSAGES, 1 << 20, 1 << 20, True, 0, PASSAGES * DIMENSION
)
INDEX = HEADER + bytes(range(256)) * (PASSAGES * DIMENSION * 4 // 256)


def tar_of(content: bytes) -> bytes:
    """What the hub's wiki-18.jsonl.gz holds: a folder, and in it the one file."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        folder = tarfile.TarInfo("somewhere")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        member = tarfile.TarInfo("somewhere/wiki_dump.jsonl")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def musique_lines(split: str, count: int) -> bytes:
    """FlashRAG's form: the ids tell no hops, the decomposition does."""
    rows = [
        {
            "id": f"{split}_{n}",
            "question": f"Question {n}?",
            "golden_answers": ["x"],
            "metadata": {"answerable": True, "question_decomposition": [{}] * (2 + n % 3)},
        }
        for n in range(count)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubStandIn]:
    with hub_stand_in(monkeypatch, tmp_path / "home") as hub:
        hub.add(flashrag.REPO, "musique/train.jsonl", musique_lines("train", 30))
        hub.add(flashrag.REPO, "musique/dev.jsonl", musique_lines("dev", 12))
        hub.add(wiki18.CORPUS_REPO, "wiki-18.jsonl.gz", gzip.compress(tar_of(CORPUS)))
        hub.add(wiki18.INDEX_REPO, "part_aa", INDEX[:900])
        hub.add(wiki18.INDEX_REPO, "part_ab", INDEX[900:])
        yield hub


@pytest.fixture
def small_world(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sizes of the stand-in's Wikipedia in place of the real ones."""
    monkeypatch.setattr(wiki18, "PASSAGES", PASSAGES)
    monkeypatch.setattr(wiki18, "DIMENSION", DIMENSION)
    sizes = {wiki18.ARCHIVE: len(gzip.compress(tar_of(CORPUS))), wiki18.CORPUS: len(CORPUS)}
    monkeypatch.setattr(wiki18, "BYTES", sizes | {wiki18.INDEX: len(INDEX)})


def command(module: str, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=os.environ | environment)


def fetch_wiki(out: Path, *arguments: str) -> Result:
    return CliRunner().invoke(wiki18.main, ["--out", str(out), *arguments])


def test_musique_from_the_hub_draws_and_warns(hub: HubStandIn, tmp_path: Path) -> None:
    done = command("research.datasets.musique", "--out", tmp_path, "--validation", "5")
    assert done.returncode == 0, done.stderr
    assert "train.jsonl: 30 questions; the published set has 19,938" in done.stderr
    assert "dev.jsonl: 12 questions; the published set has 2,417" in done.stderr
    train, validation, test = (
        read_questions(tmp_path / f"{split}.questions.jsonl") for split in ("train", "validation", "test")
    )
    assert len({question.id for question in (*validation, *test)}) == 12 == len(validation) + len(test)
    assert len(train) == 30 and {question.hops for question in train} == {2, 3, 4}
    assert len(validation) == 5 and all(question.id.startswith("dev_") for question in validation)
    again = command("research.datasets.musique", "--out", tmp_path, "--validation", "5")
    assert again.returncode == 0
    assert read_questions(tmp_path / "validation.questions.jsonl") == validation
    assert len(hub.ranges) == 2, "the second run must not download again"


def test_musique_says_nothing_of_the_full_set(
    hub: HubStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(musique, "TRAIN", musique.TRAIN._replace(questions=30))
    monkeypatch.setattr(musique, "DEV", musique.DEV._replace(questions=12))
    done = CliRunner().invoke(musique.main, ["--out", str(tmp_path), "--validation", "12"])
    assert done.exit_code == 0 and "WARNING" not in done.output


def test_musique_from_local_files_needs_no_hub(tmp_path: Path) -> None:
    train, dev = tmp_path / "train.jsonl", tmp_path / "dev.jsonl"
    train.write_bytes(musique_lines("train", 3))
    dev.write_bytes(musique_lines("dev", 3))
    local = ["--train", str(train), "--dev", str(dev)]
    done = command(
        "research.datasets.musique", "--out", tmp_path, *local, "--validation", "2", HF_HUB_OFFLINE="1"
    )
    assert (done.returncode, done.stderr) == (0, "")
    done = command("research.datasets.musique", "--out", tmp_path, *local, HF_HUB_OFFLINE="1")
    assert (done.returncode, done.stderr) == (1, "Error: 100 validation questions cannot be drawn from 3\n")


def test_musique_without_network_is_one_line(tmp_path: Path) -> None:
    runner = CliRunner()
    assert "--train and --dev go together" in runner.invoke(musique.main, ["--out", "x", "--dev", "y"]).output
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": ""}
    done = command("research.datasets.musique", "--out", tmp_path, **environment)
    assert done.returncode == 1
    assert done.stderr.startswith(
        "Error: RUC-NLPIR/FlashRAG_datasets/musique/train.jsonl: no connection to http"
    )
    assert done.stderr.count("\n") == 1


@pytest.mark.usefixtures("small_world")
def test_wiki18_brings_both_files_and_nothing_else(hub: HubStandIn, tmp_path: Path) -> None:
    out = tmp_path / "wiki18"
    done = fetch_wiki(out)
    assert done.exit_code == 0, done.output
    assert (out / "wiki-18.jsonl").read_bytes() == CORPUS
    assert (out / "e5_Flat.index").read_bytes() == INDEX
    assert sorted(path.name for path in out.iterdir()) == ["e5_Flat.index", "wiki-18.jsonl"]
    hub.ranges.clear()
    assert fetch_wiki(out).exit_code == 0
    assert hub.ranges == []
    assert [file.present for file in wiki18.required_files(out)] == [True, True]
    assert wiki18.space_needed(out) == 0


@pytest.mark.usefixtures("small_world")
def test_wiki18_goes_on_after_an_interruption(hub: HubStandIn, tmp_path: Path) -> None:
    hub.faults.extend([("", 0), ("status", 503)])
    done = fetch_wiki(tmp_path, "--only", "index")
    assert (done.exit_code, "status 503" in done.output) == (1, True)
    assert wiki18.space_needed(tmp_path, (wiki18.INDEX,)) == len(INDEX) - 900
    assert "missing, 900 bytes of 1.3 kB downloaded" in wiki18.plan(tmp_path)
    assert fetch_wiki(tmp_path, "--only", "index").exit_code == 0
    assert (tmp_path / "e5_Flat.index").read_bytes() == INDEX
    assert hub.ranges == [None, None, None], "the first part must not come again"


@pytest.mark.usefixtures("small_world")
def test_wiki18_unpacks_plain_gzip_and_starts_anew_over_a_half(tmp_path: Path) -> None:
    archive, corpus = tmp_path / "a.gz", tmp_path / "wiki-18.jsonl"
    archive.write_bytes(gzip.compress(CORPUS.removesuffix(b"\n")))
    (tmp_path / "wiki-18.jsonl.unpacking").write_bytes(b"a half from a killed process")
    wiki18.unpack(archive, corpus)
    assert corpus.read_bytes() == CORPUS.removesuffix(b"\n")
    assert not (tmp_path / "wiki-18.jsonl.unpacking").exists()


@pytest.mark.usefixtures("small_world")
@pytest.mark.parametrize(
    ("packed", "reason"),
    [
        (b"not gzip at all", "is damaged"),
        (gzip.compress(CORPUS)[:-30], "is damaged"),
        (gzip.compress(tar_of(CORPUS)[:2500]), "is damaged"),
        (gzip.compress(CORPUS + CORPUS), "holds 80 passages, not 40"),
        (gzip.compress(b"", mtime=0), "holds 0 passages, not 40"),
    ],
)
def test_wiki18_names_a_bad_archive(tmp_path: Path, packed: bytes, reason: str) -> None:
    (tmp_path / "a.gz").write_bytes(packed)
    with pytest.raises(DataError, match=f"a.gz: {reason}.*; remove it and run again"):
        wiki18.unpack(tmp_path / "a.gz", tmp_path / "wiki-18.jsonl")
    assert not (tmp_path / "wiki-18.jsonl").exists()


@pytest.mark.usefixtures("small_world")
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is not a FAISS flat inner-product index"),
        (INDEX[900:] + INDEX[:900], "is not a FAISS flat inner-product index"),
        (INDEX[:-1], "is cut short or too long"),
        (INDEX.replace(b"\x28\x00", b"\x29\x00", 1), "holds 41 vectors of 8, not 40 of 8"),
    ],
)
def test_wiki18_names_a_bad_index(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "e5_Flat.index").write_bytes(content)
    done = fetch_wiki(tmp_path, "--only", "index")
    assert done.exit_code == 1
    assert f"Error: {tmp_path}/e5_Flat.index: {reason}" in done.output


def test_wiki18_names_a_corpus_that_is_still_a_tar(tmp_path: Path) -> None:
    (tmp_path / "wiki-18.jsonl").write_bytes(tar_of(CORPUS))
    with pytest.raises(DataError, match="wiki-18.jsonl: does not start with a passage"):
        wiki18.check_corpus(tmp_path / "wiki-18.jsonl")


def test_wiki18_reads_the_header_that_faiss_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faiss = pytest.importorskip("faiss")
    numpy = pytest.importorskip("numpy")
    index = faiss.IndexFlatIP(DIMENSION)
    index.add(numpy.ones((PASSAGES, DIMENSION), dtype="float32"))
    faiss.write_index(index, str(tmp_path / "real.index"))
    monkeypatch.setattr(wiki18, "PASSAGES", PASSAGES)
    monkeypatch.setattr(wiki18, "DIMENSION", DIMENSION)
    wiki18.check_index(tmp_path / "real.index")
    monkeypatch.setattr(wiki18, "PASSAGES", PASSAGES + 1)
    with pytest.raises(DataError, match="real.index"):
        wiki18.check_index(tmp_path / "real.index")


def test_wiki18_plans_without_a_network(tmp_path: Path) -> None:
    files = wiki18.required_files(tmp_path / "none")
    assert files == [("wiki-18.jsonl", 14_393_573_105, False), ("e5_Flat.index", 64_559_075_373, False)]
    vectors = 4 * wiki18.PASSAGES * wiki18.DIMENSION
    assert files[1].size == wiki18.INDEX_HEADER.size + vectors
    assert wiki18.space_needed(tmp_path) == sum(file.size for file in files)
    assert wiki18.space_needed(tmp_path, (wiki18.CORPUS,)) == 14_393_573_105 + 5_123_307_260
    done = command("research.datasets.wiki18", "--out", tmp_path / "none", "--dry-run", HF_HUB_OFFLINE="1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "e5_Flat.index    64.6 GB  missing, 0 bytes of 64.6 GB downloaded\n" in done.stdout
    assert "disk: 79.0 GB more needed, " in done.stdout
    assert not (tmp_path / "none").exists()


def test_wiki18_wants_space_before_it_starts(
    hub: HubStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wiki18, "BYTES", dict.fromkeys(wiki18.BYTES, 10**16))
    done = fetch_wiki(tmp_path)
    assert done.exit_code == 1
    assert "NOT ENOUGH" in done.output
    assert f"Error: {tmp_path}: no space: 20,000,000.0 GB more needed" in done.output
    assert hub.ranges == []


def test_search_r1s_questions_are_two_sets_with_ids_of_their_own(hub: HubStandIn, tmp_path: Path) -> None:
    for name, held_out in (("nq", "test"), ("hotpotqa", "dev")):
        for split, count in (("train", 6), (held_out, 8)):
            rows = [
                {"id": f"{split}_{n}", "question": f"{name} {split} {n}?", "golden_answers": ["x"]}
                for n in range(count)
            ]
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            hub.add(flashrag.REPO, f"{name}/{split}.jsonl", lines.encode())
    done = command("research.datasets.nq_hotpotqa", "--out", tmp_path, "--validation", "2", "--test", "3")
    assert done.returncode == 0, done.stderr
    questions = {
        split: read_questions(tmp_path / f"{split}.questions.jsonl")
        for split in ("train", "validation", "test")
    }
    assert {split: len(each) for split, each in questions.items()} == {
        "train": 12,
        "validation": 4,
        "test": 6,
    }
    names = [each.id for each in questions["train"]]
    assert len({*names}) == 12 and names[0] == "nq_train_0" and names[-1] == "hotpotqa_train_5"
    assert not {each.id for each in questions["validation"]} & {each.id for each in questions["test"]}
    assert "79,168" in done.stderr + done.stdout  # of the published set
