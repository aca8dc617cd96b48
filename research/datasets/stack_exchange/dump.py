"""Questions of StackExchange and their good answers, from rows of two forms:

  texts that answer it   {"question", "positives": [text, ...]}
  answers with votes     {"question", "answers": [{"text", "pm_score", "selected"}, ...]}

"question" may be "title" and "body" instead; an answer's text may be "body" or "answer", its score "score" or
"votes", its acceptance "is_accepted". The second form is that of the hub's stack-exchange-preferences.
Optional: an id ("id", "qid", "question_id"), and the origin ("source", "site", "domain", or the host of an
address in "url", "link", "metadata").
"""

import hashlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from research.datasets.json_rows import check_storable, read_objects
from research.datasets.stack_exchange.html_text import is_html, plain_text, plain_title
from research.errors import DataError

Row = dict[str, Any]

IDS, SOURCES, ADDRESSES = ("id", "qid", "question_id"), ("source", "site", "domain"), ("url", "link")
TEXTS, SCORES = ("text", "body", "answer"), ("pm_score", "score", "votes")
ACCEPTANCES = ("selected", "is_accepted")
# An image's words hold no further "![", or a row of those would be scanned again from each.
IMAGE = re.compile(r"<img\b|!\[(?:(?!!\[)[^\]\n])*+\][(\[]", re.IGNORECASE)
HOST = re.compile(
    r"https?://(?:www\.)?([\w.-]+?)(?:\.stackexchange\.com|\.com|\.net|\.org)?(?=[:/?#]|$)", re.I
)
Answer = tuple[str, float, bool]
"""(text, score, accepted); no score is the lowest."""


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
    for where, row in read_objects(path, "question"):
        raw, question = _question(row, reading, where)
        source = _source(row, where) or path.name.split(".")[0]
        positives = tuple(dict.fromkeys(_positives(row, reading, where)))
        name = _only(_first(row, IDS, ""), (str, int), f"{where}: the id must be a string or an integer")
        check_storable({"question": question, "positives": positives, "source": source, "id": name}, where)
        name = str(name) or hashlib.sha256(question.encode()).hexdigest()[:12]
        yield Post(f"{source}_{name}", question, positives, source, where, IMAGE.search(raw) is not None)


def _question(row: Row, reading: Reading, where: str) -> tuple[str, str]:
    """(as it stands in the row, as plain text)"""
    if row.get("question") is not None:
        raw = _only(row["question"], str, f'{where}: "question" must be a string')
        return raw, _plain(raw, reading)
    if row.get("title") is None or row.get("body") is None:
        raise DataError(f'{where}: needs "question", or "title" and "body"')
    title, body = (_only(row[name], str, f'{where}: "{name}" must be a string') for name in ("title", "body"))
    return f"{title}\n{body}", f"{plain_title(title)}\n{_plain(body, reading)}".strip()


def _positives(row: Row, reading: Reading, where: str) -> list[str]:
    texts: list[str] = []
    if row.get("positives") is not None:
        raw = _only(row["positives"], list, f'{where}: "positives" must be a list')
        texts = [
            _only(each, str, f'{where}: "positives"[{n}] must be a string') for n, each in enumerate(raw)
        ]
    elif row.get("answers") is not None:
        answers = _only(row["answers"], list, f'{where}: "answers" must be a list')
        rows = [_answer(each, f'{where}: "answers"[{place}]') for place, each in enumerate(answers)]
        texts = _good_answers(rows, reading)
    elif reading.need_positives:
        raise DataError(f'{where}: needs "positives" or "answers"')
    return [_plain(each, reading) for each in texts]


def _good_answers(answers: list[Answer], reading: Reading) -> list[str]:
    """The accepted answers, else those with the most votes."""
    accepted = [text for text, _, is_accepted in answers if is_accepted]
    voted = [(score, text) for text, score, _ in answers if score >= reading.least_score]
    voted.sort(key=lambda pair: -pair[0])
    return accepted or [text for _, text in voted[: reading.most]]


def _answer(answer: Any, where: str) -> Answer:
    answer = _only(answer, dict, f"{where} must be an object")
    text, score, accepted = (_first(answer, names) for names in (TEXTS, SCORES, ACCEPTANCES))
    if text is None:
        raise DataError(f'{where} needs "text", "body" or "answer"')
    if score is None and accepted is None:
        raise DataError(f'{where} needs a score ("pm_score") or an acceptance ("selected")')
    score = _only(-math.inf if score is None else score, (int, float), f"{where}: the score must be a number")
    accepted = _only(
        False if accepted is None else accepted, bool, f"{where}: the acceptance must be true or false"
    )
    return _only(text, str, f"{where}: the text must be a string"), score, accepted


def _source(row: Row, where: str) -> str:
    """The origin of a question: a given name, else the host of an address without its usual end."""
    metadata = row.get("metadata")
    rows = [row, metadata] if isinstance(metadata, dict) else [row]
    for each in rows:
        if name := _first(each, SOURCES):
            return str(_only(name, str, f'{where}: "source" must be a string'))
    addresses = [_first(each, ADDRESSES) for each in rows]
    addresses += metadata if isinstance(metadata, list) else []
    hosts = (HOST.match(each) for each in addresses if isinstance(each, str))
    return next((host[1].lower() for host in hosts if host), "")


def _plain(text: str, reading: Reading) -> str:
    as_html = reading.text == "html" or (reading.text == "auto" and is_html(text))
    return plain_text(text) if as_html else text.strip()


def _first(row: Row, names: tuple[str, ...], default: Any = None) -> Any:
    """The value of the first of `names` that the row has."""
    return next((row[name] for name in names if row.get(name) is not None), default)


def _only(value: Any, kinds: type | tuple[type, ...], message: str) -> Any:
    """The value, if it is of one of the kinds. Raises DataError."""
    if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
        raise DataError(message)
    return value
