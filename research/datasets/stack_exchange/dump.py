"""Questions of StackExchange and their good answers, from rows of two forms:

  texts that answer it   {"question", "positives": [text, ...]}
  answers with votes     {"question", "answers": [{"text", "pm_score", "selected"}, ...]}

"question" may be "title" and "body" instead; an answer's text may be "body" or "answer", its score "score" or
"votes", its acceptance "is_accepted". The second form is that of the hub's stack-exchange-preferences.
Optional: an id ("id", "qid", "question_id"), and the origin ("source", "site", "domain", or the host of an
address in "url", "link", "metadata").
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from research.datasets.json_rows import read_rows
from research.datasets.stack_exchange.html_text import is_html, plain_text, plain_title
from research.errors import DataError

Row = dict[str, Any]

IDS, SOURCES, ADDRESSES = ("id", "qid", "question_id"), ("source", "site", "domain"), ("url", "link")
TEXTS, SCORES = ("text", "body", "answer"), ("pm_score", "score", "votes")
ACCEPTANCES = ("selected", "is_accepted")
# An image's words hold no further "![", or a row of those would be scanned again from each.
IMAGE = re.compile(r"<img\b|!\[(?:(?!!\[)[^\]\n])*+\][(\[]", re.IGNORECASE)
HOST_ENDS = (".stackexchange.com", ".com", ".net", ".org")


@dataclass(frozen=True)
class Reading:
    """How rows are read. `text`: "html", "plain", or "auto" to decide for each text.

    An accepted answer is the positive, else up to `most` answers of at least `least_score`, best first.
    """

    text: str = "auto"
    least_score: float = 2
    most: int = 3
    need_positives: bool = True


@dataclass(frozen=True)
class Post:
    """A question as plain text with the texts that answer it; `where` is its file and line."""

    id: str
    question: str
    positives: tuple[str, ...]
    source: str
    where: str
    has_image: bool


def read_posts(path: Path, reading: Reading) -> Iterator[Post]:
    """The posts of a JSON, JSONL (.gz) or parquet file, one by one. Raises DataError naming file and line."""
    for line, row in read_rows(path):
        where = f"{path}:{line}"
        if not isinstance(row, dict):
            raise DataError(f"{where}: a question must be a JSON object")
        raw, question = _question(row, reading, where)
        source = _source(row, where) or path.name.split(".")[0]
        name = _id(row, where) or hashlib.sha256(question.encode()).hexdigest()[:12]
        positives = tuple(dict.fromkeys(_positives(row, reading, where)))
        yield Post(f"{source}_{name}", question, positives, source, where, IMAGE.search(raw) is not None)


def _question(row: Row, reading: Reading, where: str) -> tuple[str, str]:
    """(as it stands in the row, as plain text)"""
    if row.get("question") is not None:
        raw = _string(row["question"], '"question"', where)
        return raw, _plain(raw, reading)
    for name in ("title", "body"):
        if row.get(name) is None:
            raise DataError(f'{where}: needs "question", or "title" and "body"')
    title, body = (_string(row[name], f'"{name}"', where) for name in ("title", "body"))
    return f"{title}\n{body}", f"{plain_title(title)}\n{_plain(body, reading)}".strip()


def _positives(row: Row, reading: Reading, where: str) -> list[str]:
    texts: list[str] = []
    if row.get("positives") is not None:
        raw = _list(row["positives"], "positives", where)
        texts = [_string(each, f'"positives"[{place}]', where) for place, each in enumerate(raw)]
    elif row.get("answers") is not None:
        texts = _good_answers(_list(row["answers"], "answers", where), reading, where)
    elif reading.need_positives:
        raise DataError(f'{where}: needs "positives" or "answers"')
    return [_plain(each, reading) for each in texts]


def _good_answers(answers: list[Any], reading: Reading, where: str) -> list[str]:
    """The accepted answers, else those with the most votes."""
    rows = [_answer(each, f'{where}: "answers"[{place}]') for place, each in enumerate(answers)]
    accepted = [text for text, _, is_accepted in rows if is_accepted]
    voted = [(score, text) for text, score, _ in rows if score is not None and score >= reading.least_score]
    voted.sort(key=lambda pair: -pair[0])
    return accepted or [text for _, text in voted[: reading.most]]


def _answer(answer: Any, where: str) -> tuple[str, float | None, bool]:
    """(text, score, accepted) of one answer."""
    if not isinstance(answer, dict):
        raise DataError(f"{where} must be an object")
    text, score, accepted = (_first(answer, names) for names in (TEXTS, SCORES, ACCEPTANCES))
    if text is None:
        raise DataError(f'{where} needs "text", "body" or "answer"')
    if score is None and accepted is None:
        raise DataError(f'{where} needs a score ("pm_score") or an acceptance ("selected")')
    if score is not None and type(score) not in (int, float):
        raise DataError(f"{where}: the score must be a number")
    if accepted is not None and type(accepted) is not bool:
        raise DataError(f"{where}: the acceptance must be true or false")
    return _string(text, "the text", where), score, bool(accepted)


def _source(row: Row, where: str) -> str:
    """The origin of a question: a given name, else the host of an address without its usual end."""
    metadata = row.get("metadata")
    rows = [row, metadata] if isinstance(metadata, dict) else [row]
    for each in rows:
        if name := _first(each, SOURCES):
            return _string(name, '"source"', where)
    addresses = [_first(each, ADDRESSES) for each in rows]
    addresses += metadata if isinstance(metadata, list) else []
    for each in addresses:
        if isinstance(each, str) and each.startswith("http"):
            return _host(each)
    return ""


def _host(address: str) -> str:
    try:
        host = (urlsplit(address).hostname or "").removeprefix("www.")
    except ValueError:  # square brackets that hold no address
        return ""
    end = next((each for each in HOST_ENDS if host.endswith(each)), "")
    return host.removesuffix(end)


def _id(row: Row, where: str) -> str:
    value = _first(row, IDS)
    if value is not None and type(value) is not int and not isinstance(value, str):
        raise DataError(f"{where}: the id must be a string or an integer")
    return "" if value is None else _string(str(value), "the id", where)


def _plain(text: str, reading: Reading) -> str:
    as_html = reading.text == "html" or (reading.text == "auto" and is_html(text))
    return plain_text(text) if as_html else text.strip()


def _first(row: Row, names: tuple[str, ...]) -> Any:
    """The value of the first of `names` that the row has."""
    return next((row[name] for name in names if row.get(name) is not None), None)


def _list(value: Any, name: str, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise DataError(f'{where}: "{name}" must be a list')
    return value


def _string(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: {name} must be a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: {name} holds half a surrogate pair") from error
    return value
