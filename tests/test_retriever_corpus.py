"""Corpus: malformed rows are named by file and line; the copy reads back row by row and is what is hashed."""

import gzip
import hashlib
import io
import json
import re
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retriever_server.corpus import Corpus, Document, read_documents, scan_corpus, write_corpus
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
        ('{"id": "b", "text": ["x"]}', '"text" must be a string, not list'),
        ('{"id": "b", "text": "x", "title": 7}', '"title" must be a string, not int'),
        ('{"_id": "b", "title": " ", "text": ""}', '"text" is empty'),
        ('{"_id": [1], "text": "x"}', '"_id" must be an integer or a non-empty string, not [1]'),
        ('{"id": %s, "contents": "x"}' % ([10**99] * 9), '"id" must be an integer or a non-empty string'),
        ('{"id": "b", "contents": %s}' % ("[" * 100_000 + "]" * 100_000), "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ('{"id": %s, "contents": "x"}' % ("9" * 5000), "not JSON: Exceeds the limit"),
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
    assert str(caught.value).startswith(f"{source}:3: {complaint}") and len(str(caught.value)) < 500


BEIR = [
    {"_id": "7", "title": "Rome", "text": "the capital of Italy", "metadata": {}},
    {"_id": 8, "title": "", "text": "no title"},
    {"id": 9, "title": "no text", "text": ""},
    {"id": "10", "title": None, "text": "null title"},
    {"_id": "d", "id": "11", "title": "left out", "text": "left out", "contents": "both forms"},
]
READ = [
    ("7", "Rome\nthe capital of Italy"),
    ("8", "no title"),
    ("9", "no text"),
    ("10", "null title"),
    ("11", "both forms"),
]


def tar_of(files: dict[str, bytes]) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return archive.getvalue()


@pytest.mark.parametrize("name", ["c.jsonl", "c.jsonl.gz", "c.tar.gz", "c.tgz", "c"])
def test_beir_rows_and_archives_are_read_whatever_the_file_is_called(tmp_path: Path, name: str) -> None:
    rows = "".join(json.dumps(row) + "\n" for row in BEIR).encode()
    inside = {"._corpus.jsonl": b"macOS", "data/README.md": b"# Corpus", "data/corpus.jsonl": rows}
    source = tmp_path / name
    for content in (rows, gzip.compress(rows), tar_of(inside), gzip.compress(tar_of(inside))):
        source.write_bytes(content)
        assert [document for _, document in read_documents(source)] == READ


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"PAR1\x15\x04PAR1", "c:1: it is Parquet; a corpus is JSON Lines, "),
        (b"PK\x03\x04\x14\x00", "c:1: it is a zip archive; a corpus is JSON Lines, "),
        (b"id\ttext\ttitle\n1\tx\ty\n", "c:1: not JSON: .*; a corpus is JSON Lines, "),
        (b'[\n{"id": 1, "contents": "x"}\n]', "c:1: not JSON: .*; a corpus is JSON Lines, "),
        (b'[{"id": 1, "contents": "x"}]', "c:1: a row must be an object, .*; a corpus is JSON Lines, "),
        (b'{"docid": 1, "contents": "x"}', 'c:1: "id" is missing; a corpus is JSON Lines, '),
        (b'{"id": 1, "passage": "x"}', 'c:1: "contents" is missing; .*{"_id", "title", "text"}'),
        (tar_of({"README.md": b"x"}), "c:1: the archive holds no .jsonl file; a corpus is"),
        (tar_of({"a.jsonl": GOOD.encode(), "b.jsonl": b""}), "more than one corpus, a.jsonl and b.jsonl"),
        (tar_of({"a.jsonl": GOOD.encode() * 9})[:700], "c:1: broken gzip or tar file"),
        (gzip.compress(gzip.compress(b"x" * 9))[:-9], "c:1: broken gzip or tar file"),
    ],
)
def test_what_is_no_corpus_is_told_what_is_one(tmp_path: Path, content: bytes, complaint: str) -> None:
    (tmp_path / "c").write_bytes(content)
    with pytest.raises(RetrieverError, match=complaint):
        list(read_documents(tmp_path / "c"))


VALUES = st.sampled_from(["x", "", " ", "\ud800", "a\nb", "é", 0, -1, 1.5, True, None, [], ["x"], {"a": 1}])
FIELDS = st.sampled_from(["id", "_id", "contents", "title", "text", "x"])
ROWS = st.dictionaries(FIELDS, VALUES, max_size=4).map(json.dumps)
FILES = st.binary(max_size=200) | st.lists(ROWS, max_size=4).map(lambda rows: "\n".join(rows).encode())


@given(FILES, st.sampled_from([lambda content: content, gzip.compress, lambda c: tar_of({"c.jsonl": c})]))
def test_any_file_is_read_or_refused_by_name(content: bytes, pack: Callable[[bytes], bytes]) -> None:
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(pack(content))
        try:
            documents = [document for _, document in read_documents(Path(file.name))]
        except RetrieverError as error:
            assert re.match(rf"{file.name}:\d+: .", str(error))
        else:
            assert all(document.id and document.contents.strip() for document in documents)
            assert all(Document(**json.loads(document.line())) == document for document in documents)


def test_half_surrogate_pairs_are_replaced_and_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = tmp_path / "source.jsonl"
    rows = [
        GOOD,
        '{"id": "\\ud83d b", "contents": "x"}',
        r'{"id": 3, "contents": "\ud83d\ude00 \ude00\ud83d"}',
    ]
    source.write_text("\n".join(rows))
    corpus = copy_of(source, tmp_path)
    assert [corpus[1].id, corpus[2].contents] == ["\ufffd b", "😀 \ufffd\ufffd"]
    told = f"{source}:2: half a surrogate pair, read as U+FFFD (rows with any: 2)\n"
    assert capsys.readouterr().err == told
    source.write_bytes(b'{"id": "\xed\xa0\x80", "contents": "x"}\n{"id": "\\udfff", "contents": "x"}\n')
    with pytest.raises(RetrieverError, match='source.jsonl:2: id "\ufffd" is already in line 1'):
        scan_corpus(source)


def test_repeated_id_is_named_with_both_lines(tmp_path: Path) -> None:
    source = tmp_path / "source.jsonl"
    source.write_text('{"id": 1, "contents": "x"}\n' + GOOD + '\n{"id": "1", "contents": "y"}\n')
    with pytest.raises(RetrieverError, match=r'source.jsonl:3: id "1" is already in line 1'):
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
