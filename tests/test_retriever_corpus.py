"""Corpus: malformed rows are named by file and line; the copy reads back row by row and is what is hashed."""

import gzip
import hashlib
import json
from pathlib import Path

import pytest

from retriever_server.corpus import Corpus, read_documents, scan_corpus, write_corpus
from retriever_server.errors import RetrieverError

GOOD = '{"id": "a", "contents": "Rome\\nthe capital of Italy"}'


def copy_of(source: Path, directory: Path) -> Corpus:
    write_corpus(source, directory, scan_corpus(source))
    return Corpus(directory)


def test_rows_come_back_as_they_were_in_order(tmp_path: Path) -> None:
    rows = [
        {"id": 7, "contents": "an integer id"},
        {"id": "ü-№ 2", "contents": '"Zürich"\nöffnet um 8\u2028東京 🗼 \x00 end'},
        {"title": "x", "text": "y", "id": "c", "contents": "  blanks stay \n"},
    ]
    source = tmp_path / "source.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows[:2]) + "\n" + json.dumps(rows[2]))
    corpus = copy_of(source, tmp_path)
    assert [corpus[row] for row in range(len(corpus))] == [(str(row["id"]), row["contents"]) for row in rows]


def test_ids_are_read_without_the_contents(tmp_path: Path) -> None:
    names = [7, "a b", 'say "no"', '", "contents": "', "back\\slash\\", "東京"]
    rows = [{"id": name, "contents": f'of {name}", "contents": "x'} for name in names]
    source = tmp_path / "source.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = copy_of(source, tmp_path)
    assert [corpus.id(row) for row in range(len(names))] == [str(name) for name in names]
    assert [json.loads(corpus.id_line(row)) for row in range(6)] == [{"id": str(name)} for name in names]


def test_fingerprint_is_the_hash_of_the_copy_and_of_nothing_else(tmp_path: Path) -> None:
    source = tmp_path / "source.jsonl"
    source.write_text(GOOD + "\n")
    summary = scan_corpus(source)
    write_corpus(source, tmp_path, summary)
    copy = (tmp_path / "corpus.jsonl").read_bytes()
    assert (summary.sha256, summary.bytes) == (hashlib.sha256(copy).hexdigest(), len(copy))

    packed = tmp_path / "source.jsonl.gz"
    row = {"contents": "Rome\nthe capital of Italy", "extra": 1, "id": "a"}
    packed.write_bytes(gzip.compress(json.dumps(row).encode()))
    assert scan_corpus(packed) == summary
    source.write_text(GOOD.replace("Italy", "Itaiy") + "\n")
    assert scan_corpus(source).sha256 != summary.sha256


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ('{"id": "b"}', '"contents" is missing'),
        ('{"contents": "x"}', '"id" is missing'),
        ('{"id": "b", "contents": ""}', '"contents" is empty'),
        ('{"id": "b", "contents": " \\n"}', '"contents" is empty'),
        ('{"id": "b", "contents": ["x"]}', '"contents" must be a string, not list'),
        ('{"id": "b", "contents": null}', '"contents" must be a string, not NoneType'),
        ('{"id": "b", "contents": "\\ud800"}', '"contents" holds a broken Unicode character'),
        ('{"id": true, "contents": "x"}', '"id" must be an integer or a non-empty string, not True'),
        ('{"id": 1.5, "contents": "x"}', '"id" must be an integer or a non-empty string, not 1.5'),
        ('{"id": "", "contents": "x"}', '"id" must be an integer or a non-empty string'),
        ('["b", "x"]', "a row must be an object, this one is list"),
        ('{"id": "b", "contents": "x"', "not JSON"),
        (b'{"id": "b", "contents": "\xff"}', "not JSON"),
    ],
)
def test_malformed_row_is_named_by_file_and_line(tmp_path: Path, row: str | bytes, complaint: str) -> None:
    source = tmp_path / "source.jsonl"
    source.write_bytes(GOOD.encode() + b"\n\n" + (row if isinstance(row, bytes) else row.encode()) + b"\n")
    with pytest.raises(RetrieverError) as caught:
        list(read_documents(source))
    assert str(caught.value).startswith(f"{source}:3: {complaint}")


def test_repeated_id_is_named_with_both_lines(tmp_path: Path) -> None:
    source = tmp_path / "source.jsonl"
    source.write_text('{"id": 1, "contents": "x"}\n' + GOOD + '\n{"id": "1", "contents": "y"}\n')
    with pytest.raises(RetrieverError, match=r'source.jsonl:3: id "1" already stands in line 1'):
        scan_corpus(source)


def test_empty_corpus_and_broken_gzip_are_refused(tmp_path: Path) -> None:
    empty, cut = tmp_path / "empty.jsonl", tmp_path / "cut.jsonl.gz"
    empty.write_text("\n")
    with pytest.raises(RetrieverError, match="no rows"):
        scan_corpus(empty)
    packed = gzip.compress("".join(f'{{"id": {i}, "contents": "{i * i}"}}\n' for i in range(2000)).encode())
    cut.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(RetrieverError, match="cut.jsonl.gz:.*broken gzip"):
        scan_corpus(cut)


def test_source_that_changes_between_reading_and_copying_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "source.jsonl"
    source.write_text(GOOD + "\n")
    summary = scan_corpus(source)
    source.write_text(GOOD + '\n{"id": "b", "contents": "a row more"}\n')
    with pytest.raises(RetrieverError, match="changed while"):
        write_corpus(source, tmp_path, summary)


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_offsets_that_do_not_fit_are_refused(tmp_path: Path, damage: str) -> None:
    source = tmp_path / "source.jsonl"
    source.write_text(GOOD + "\n")
    copy_of(source, tmp_path)
    offsets = tmp_path / "offsets.npy"
    if damage == "cut":
        offsets.write_bytes(offsets.read_bytes()[:-4])
    else:
        (tmp_path / "corpus.jsonl").write_text(GOOD + "\n" + GOOD + "\n")
    with pytest.raises(RetrieverError, match="offsets.npy"):
        Corpus(tmp_path)
