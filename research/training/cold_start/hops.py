"""The hops of a question's gold decomposition, each with what to search for and what it finds.

MuSiQue has ``question_decomposition`` ("Who was the first president of #1?"), 2Wiki ``evidences`` (triples),
HotpotQA the titles of its ``supporting_facts``.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from research.datasets.json_rows import unpacked
from research.datasets.question_forms import Question
from research.metrics.answers import normalize_answer

Triple = tuple[str, str, str]  # subject, relation, object
TRIPLE = ("fact", "relation", "entity")
YEAR = re.compile(r"\b(\d{4})\b")


@dataclass(frozen=True)
class Hop:
    """One step of the way to an answer.

    Attributes:
        wanted: what is to be found, as the thought before the search says it.
        queries: what to search for, the next one where those before it found nothing.
        answer: what a passage must say; with `by_title` it is the passage's title.
        fact: what is known afterwards, in words; empty where a page alone was found.
    """

    wanted: str
    queries: tuple[str, ...]
    answer: str
    fact: str
    by_title: bool = False

    def is_in(self, shown: str) -> bool:
        """Whether the passages that the model was shown hold what this hop looks for."""
        answer = normalize_answer(self.answer)
        return bool(answer) and f" {answer} " in f" {normalize_answer(shown)} "


def hops_of(question: Question) -> tuple[Hop, ...]:
    """The hops in order; empty for a question without a decomposition that can be followed."""
    metadata = question.metadata
    if steps := unpacked(metadata.get("question_decomposition")):
        return _of_steps(steps)
    if triples := triples_of(question):
        return _of_triples(triples)
    return _of_titles(question.question, question.supporting_titles, question.golden_answers[0])


def _of_steps(steps: Any) -> tuple[Hop, ...]:
    """MuSiQue's: questions in which ``#1`` is the answer of the first, or ``subject >> relation``."""
    try:
        asked = [(str(step["question"]), str(step["answer"])) for step in steps]
    except (TypeError, KeyError):
        return ()
    hops = []
    for text, answer in asked:
        before = [earlier for number, (_, earlier) in enumerate(asked, 1) if f"#{number}" in text]
        wanted = re.sub(r"#(\d)", lambda found: _earlier(asked, int(found[1])), text)
        subject, relation = map(str.strip, wanted.partition(" >> ")[::2])
        wanted = f"{subject} {relation}" if relation else subject
        entities = (subject,) if relation else tuple(before)
        hops.append(Hop(wanted, _once(wanted, *entities), answer, f"{wanted}: {answer}"))
    return tuple(hops)


def _earlier(asked: Sequence[tuple[str, str]], number: int) -> str:
    return asked[number - 1][1] if 0 < number <= len(asked) else f"#{number}"


def triples_of(question: Question) -> list[Triple]:
    """2Wiki's evidences: (subject, relation, object), or the hub's lists of each; empty if one is neither."""
    evidences: Any = unpacked(question.metadata.get("evidences")) or []
    if isinstance(evidences, dict) and all(isinstance(evidences.get(each), list) for each in TRIPLE):
        evidences = list(map(list, zip(*(evidences[each] for each in TRIPLE), strict=False)))
    listed = evidences if isinstance(evidences, list) else [evidences]
    if not all(isinstance(each, list | tuple) and len(each) == 3 for each in listed):
        return []
    return [(str(subject), str(relation), str(value)) for subject, relation, value in listed]


def _of_triples(triples: Sequence[Triple]) -> tuple[Hop, ...]:
    return tuple(
        Hop(
            f"the {relation} of {subject}",
            _once(f"{subject} {relation}", subject),
            value,
            f"the {relation} of {subject} is {value}",
        )
        for subject, relation, value in triples
    )


def comparison_of(question: Question) -> tuple[str, str]:
    """The comparison of what is known, and its conclusion for the question; empty if nothing is compared.

    A small model does not compare, mind the question and answer in one step. So each step takes up one thing
    that was said before: the years, the word of the question, whose year that is, whose director that is.
    """
    triples, answer = triples_of(question), normalize_answer(question.golden_answers[0])
    return _order(triples, answer) or ("", _equality(triples, answer))


def _order(triples: Sequence[Triple], answer: str) -> tuple[str, str] | None:
    """The earlier and the later of two dates, and which of them is asked for; None if neither is."""
    years = sorted(
        (int(found[1]), subject)
        for subject, relation, value in triples
        if "date" in relation and (found := YEAR.search(value))
    )
    if len(years) != 2 or years[0][0] == years[1][0]:
        return None
    (early, first), (late, second) = years
    order = f"The earlier, {early}, is of {first}; the later, {late}, is of {second}."
    led_from = {value: (subject, f", {relation} of {subject}") for subject, relation, value in triples}
    for asked, (year, subject) in zip(("earlier", "later"), years, strict=True):
        option, whose = led_from.get(subject, (subject, ""))
        if normalize_answer(option) == answer:
            return order, f"That is the {asked}, {year}, of {subject}{whose}."
    return None


def _equality(triples: Sequence[Triple], answer: str) -> str:
    """Whether the last two facts have the same value, if that is the question."""
    said = {"yes": "the same", "no": "not the same"}.get(answer)
    if said is None or len(triples) < 2 or triples[-2][1] != triples[-1][1]:
        return ""
    return f"{triples[-2][2]} and {triples[-1][2]} are {said}."


def _of_titles(question: str, titles: Sequence[str], answer: str) -> tuple[Hop, ...]:
    """HotpotQA's two pages: those that the question names first, then the one that they lead to."""
    asked = normalize_answer(question)
    named = [title for title in titles if _plain(title) in asked]
    led_to = [title for title in titles if title not in named]
    if not named or len(titles) != 2:
        return ()
    found = [Hop(title, (_bare(title),), title, "", True) for title in named]
    if not led_to:
        return tuple(found)
    bridge = led_to[0]
    first = Hop(found[0].wanted, found[0].queries, _bare(bridge), f"it leads to {_bare(bridge)}")
    last = Hop(bridge, _once(_bare(bridge), f"{_bare(bridge)} {question}"), answer, f"{bridge}: {answer}")
    return first, last


def _bare(title: str) -> str:
    """A title without the part that distinguishes namesakes: ``Lilu (mythology)`` -> ``Lilu``."""
    return re.sub(r"\s*\([^)]*\)$", "", title)


def _plain(title: str) -> str:
    return normalize_answer(_bare(title))


def _once(*texts: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, texts)))
