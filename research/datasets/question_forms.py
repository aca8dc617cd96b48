"""Turns a row of a question file, in any form in which question sets are published, into a Question.

  ours and FlashRAG's  {"id", "question", "golden_answers": [...], "metadata": {...}}, metadata may be absent
  official MuSiQue     {"id", "question", "answer", "answer_aliases", "answerable", "question_decomposition",
                       "paragraphs": [{"title", "is_supporting"}]}
  HotpotQA and 2Wiki   {"_id", "question", "answer", "supporting_facts": [[title, sentence], ...]}
  NQ-open              {"question", "answer": [...]}, without an id
  Bamboogle            a table, .csv, with the columns Question and Answer
  Search-R1 and veRL   {"question" or "prompt": [{"role", "content"}], "golden_answers" or "reward_model":
                       {"ground_truth": {"target": [...]}}, "extra_info": {"index", "split"}}

Official rows keep the titles of their gold passages, but not the paragraphs, nine tenths of a file.
"""

import json
import re
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from research.datasets.json_rows import KINDS, id_of, text_of, texts_of, unpacked
from research.errors import DataError

Row = dict[str, Any]
FORMS = (
    'read are rows {"id", "question", "golden_answers"} (FlashRAG), {"id" or "_id", "question", "answer"} '
    '(MuSiQue, HotpotQA, 2Wiki), and with "reward_model" and "prompt" (Search-R1, veRL)'
)
FIELDS = {"id", "_id", "question", "prompt", "golden_answers", "answer", "reward_model", "extra_info"}
ANSWERS = {
    "golden_answers": "must be a non-empty list of strings",
    "answer": "must be a non-empty string",
    "reward_model": 'must be {"ground_truth": {"target": [answer, ...]}}',
}
EXTRA = ("id", "question", "index", "split", "hops", "supporting_ids")  # read from veRL's extra_info too
# As metadata, in rows without.
KEPT = ("hops", "type", "level", "question_decomposition", "evidences", "supporting_ids")


@dataclass(frozen=True)
class Question:
    """A question and every string that counts as its answer; `metadata` is whatever the data set adds."""

    id: str
    question: str
    golden_answers: tuple[str, ...]
    metadata: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def hops(self) -> int | None:
        """Passages to chain, from the metadata or a MuSiQue id (`3hop1__...`); None if unknown."""
        hops = self.metadata.get("hops")
        if type(hops) is int and 0 < hops < 100:
            return hops
        if named := re.match("([1-9])hop", self.id):
            return int(named[1])
        steps = self.metadata.get("question_decomposition")
        return len(steps) if isinstance(steps, list) and steps else None

    @property
    def data_source(self) -> str:
        """The data set that its row names, as a part of a metric's name; empty if it names none."""
        name = self.metadata.get("data_source")
        return re.sub(r"\W+", "_", name) if isinstance(name, str) else ""

    @property
    def supporting_ids(self) -> list[str]:
        """Ids of the gold passages in the data set's own corpus, if it has one."""
        return _once(map(str, _items(self.metadata.get("supporting_ids"))))

    @property
    def supporting_titles(self) -> list[str]:
        """Titles of the gold passages, also from FlashRAG's metadata, if any are labelled."""
        try:
            return _once(_items(self.metadata.get("supporting_titles"))) or _gold_titles(self.metadata)
        except ValueError:  # metadata are free: another form means something else
            return []


def question_of(row: Row, where: str) -> Question | None:
    """The question of a row, or None if the data set marks it as unanswerable; every field is checked.

    `where` is FILE:LINE; its line replaces the id in veRL's rows, which need none. Raises DataError.
    """
    row = {name: value for name, value in row.items() if value is not None}
    if isinstance(extra := row.get("extra_info"), dict):
        row = {name: extra[name] for name in EXTRA if extra.get(name) not in (None, [])} | row
    if not FIELDS & row.keys():
        raise DataError(f"{where}: an object with {named_fields(row)} is no question: {KINDS}; {FORMS}")
    metadata = row.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise DataError(f'{where}: "metadata" must be an object')
    if row.get("answerable") is False or metadata.get("answerable") is False:
        return None
    name = _id(row, where)
    if "golden_answers" not in row or "metadata" not in row:
        metadata = {**_kept(row, name, where), **metadata}
    if isinstance(row.get("data_source"), str) and "reward_model" not in row:  # there it has our split in it
        metadata = {"data_source": row["data_source"], **metadata}
    texts_of(metadata.get("supporting_ids"), "supporting_ids", f'{where}: "metadata"')
    texts_of(metadata.get("supporting_titles"), "supporting_titles", f'{where}: "metadata"', (str,))
    return Question(name, _asked(row, where), _answers(row, where), metadata)


def _id(row: Row, where: str) -> str:
    value = row.get("id", row.get("_id"))
    nameless = "reward_model" in row or "prompt" in row or isinstance(row.get("answer"), list)
    if value is None and (nameless or where.rpartition(":")[0].endswith(".csv")):
        value = f"{row.get('split', 'row')}_{row.get('index', where.rpartition(':')[2])}"
    return id_of(value, where, f"; {FORMS}")


def _asked(row: Row, where: str) -> str:
    value = row.get("question")
    if value is None and "prompt" in row:
        value = _of_prompt(row["prompt"])
    return text_of(value, "question", where, f"; {FORMS}")


def _of_prompt(prompt: Any) -> str | None:
    """The last text of the user; in Search-R1's prompts the question follows instructions."""
    messages = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    users = [each for each in messages if isinstance(each, dict) and each.get("role") == "user"]
    text = users[-1].get("content") if users else None
    return text.rpartition("Question:")[2].strip() if isinstance(text, str) else None


def _answers(row: Row, where: str) -> tuple[str, ...]:
    name = next((each for each in ANSWERS if each in row), None)
    if name is None:
        raise DataError(f'{where}: "golden_answers" {ANSWERS["golden_answers"]}; {FORMS}')
    value = row[name]
    if name == "reward_model":
        truth = value.get("ground_truth") if isinstance(value, dict) else None
        value = truth.get("target") if isinstance(truth, dict) else truth
    values = [value] if isinstance(value, str) and name != "golden_answers" else value
    if not isinstance(values, list) or not values:
        raise DataError(f'{where}: "{name}" {ANSWERS[name]}')
    for each in values:
        if not isinstance(each, str):
            raise DataError(f'{where}: "{name}" holds {reprlib.repr(each)}, which is not a string')
        if not each.strip():
            raise DataError(f'{where}: "{name}" holds an empty answer')
    if name != "answer":
        return tuple(values)
    aliases = row.get("answer_aliases", [])
    if not isinstance(aliases, list) or not all(isinstance(each, str) for each in aliases):
        raise DataError(f'{where}: "answer_aliases" must be a list of strings')
    return tuple(_once([*values, *filter(str.strip, aliases)]))


def _kept(row: Row, name: str, where: str) -> dict[str, Any]:
    """The metadata to keep from a row that has none of its own."""
    kept = {key: row[key] for key in KEPT if key in row}
    if "golden_answers" not in row and (hops := Question(name, "", (), kept).hops) is not None:
        kept = {"hops": hops, **kept}
    try:
        titles = _gold_titles(row)
    except ValueError as error:
        raise DataError(f"{where}: {error}") from error
    return kept | ({"supporting_titles": titles} if titles else {})


def _gold_titles(fields: dict[str, Any]) -> list[str]:
    """Titles by supporting facts (HotpotQA, 2Wiki), paragraphs (MuSiQue), or steps (FlashRAG's MuSiQue).

    Raises ValueError for another form: it could yield only some of the gold titles.
    """
    titles: list[str] = []
    for name, read in {"supporting_facts": _of_facts, "paragraphs": _of_paragraphs}.items():
        try:
            titles += read(fields.get(name) or [])
            if not all(isinstance(title, str) and title.strip() for title in titles):
                raise ValueError("a title is no text")
        except (TypeError, KeyError, IndexError, ValueError, RecursionError) as error:
            raise ValueError(f'"{name}" must have the form of HotpotQA, 2Wiki or MuSiQue') from error
    steps = [each for each in _items(fields.get("question_decomposition")) if isinstance(each, dict)]
    support = [each["support_paragraph"] for each in steps if isinstance(each.get("support_paragraph"), dict)]
    return _once(titles) or _once(each["title"] for each in support if isinstance(each.get("title"), str))


def _of_facts(facts: Any) -> list[Any]:
    """Titles of [[title, sentence], ...], the hub's {"title": [...], "sent_id": [...]}, or that as JSON."""
    facts = unpacked(facts)
    pairs = [[title] for title in _only(list, facts["title"])] if isinstance(facts, dict) else facts
    return [_only(list, pair)[0] for pair in _only(list, pairs)]


def _of_paragraphs(paragraphs: Any) -> list[Any]:
    rows = [_only(dict, each) for each in _only(list, paragraphs)]
    return [each["title"] for each in rows if _only(bool, each.get("is_supporting", False))]


def _only(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _once(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def named_fields(row: Row) -> str:
    """The first few field names for people, escaped so that they fit on one line."""
    return ", ".join(json.dumps(name[:40]) for name in list(row)[:5]) or "no fields"
