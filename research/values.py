"""Rules for the values of a configuration, and those of the sections that trainings and evaluations share.

The keys themselves are documented in research/config.
"""

import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, NamedTuple, get_type_hints
from urllib.parse import urlsplit

import click

from research.episode.protocol import Protocol, render_passage
from research.episode.trajectory import Passage

SERVER_MAXIMUM = 1000  # passages that the retrieval server returns for a search
NAMES = ("think", "search", "result", "answer")
HUB_NAME = re.compile(r"(?!.*(--|\.\.))\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
"""A name on the hub, with an owner or without"""


class Rule(NamedTuple):
    """A check of a value, and its description, which follows "must be" in a message."""

    holds: Callable[[Any], bool]
    meaning: str


class Number(click.FloatRange):
    """A finite number of the command line within bounds: nan lies within all of click's."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


def is_integer(value: Any, least: float, most: float = math.inf) -> bool:
    """Whether it is a whole number within bounds; true and false are not."""
    return type(value) is int and least <= value <= most


def is_number(value: Any) -> bool:
    """Whether it is a finite number; true and false are not."""
    finite = isinstance(value, int | float) and abs(value) <= sys.float_info.max  # not nan
    return finite and not isinstance(value, bool)


def is_text(value: Any) -> bool:
    """Whether it is a text that is not blank."""
    return isinstance(value, str) and bool(value.strip())


def is_url(value: Any) -> bool:
    """Whether it is an http(s) address, whose port is possible."""
    try:
        parts = urlsplit(value)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except (ValueError, TypeError, AttributeError):  # a port that is no number; not a text
        return False


def integer(least: int, most: float = math.inf) -> Rule:
    """Whole numbers within bounds."""
    meaning = f"an integer of at least {least}" if most == math.inf else f"an integer from {least} to {most}"
    return Rule(lambda value: is_integer(value, least, most), meaning)


def either(also: Any, word: str, rule: Rule) -> Rule:
    """The values of a rule, and one more value, which messages call `word`."""
    return Rule(lambda value: value == also or rule.holds(value), f"{rule.meaning}, or {word}")


def or_null(rule: Rule) -> Rule:
    """The values of a rule, or null."""
    return either(None, "null", rule)


def list_of(holds: Callable[[Any], bool], meaning: str) -> Rule:
    """Lists, also empty ones, whose elements pass `holds`."""
    return Rule(lambda value: isinstance(value, list) and all(map(holds, value)), meaning)


def one_of(names: Sequence[str]) -> Rule:
    """A choice of names."""
    return Rule(lambda value: isinstance(value, str) and value in names, f"one of {', '.join(names)}")


def _holding(place: str) -> Rule:
    return Rule(lambda value: is_text(value) and place in value, f"a text with {place}")


ABOVE_0 = Rule(lambda value: is_number(value) and value > 0, "a number above 0")
AT_LEAST_0 = Rule(lambda value: is_number(value) and value >= 0, "a number of at least 0")
FROM_0_TO_1 = Rule(lambda value: is_number(value) and 0 <= value <= 1, "a number from 0 to 1")
SHARE = Rule(lambda value: is_number(value) and 0 < value <= 1, "a number above 0 and at most 1")
SWITCH = Rule(lambda value: isinstance(value, bool), "true or false")
ANY_TEXT = Rule(lambda value: isinstance(value, str), "a text")
TEXT = Rule(is_text, "a text")
TAG = Rule(lambda value: isinstance(value, str) and value.isidentifier(), "the name of a tag")
URL = Rule(is_url, "an address like http://127.0.0.1:8000")
SECTION = Rule(lambda value: isinstance(value, Mapping), "a section with keys of its own")


def _names_one(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, Mapping) and len(value) == 1)


TOOLS = Rule(lambda value: isinstance(value, str | Sequence | Mapping), "names, or names with parameters")
ENVIRONMENT = Rule(_names_one, "a name, or one name with its parameters")

PROTOCOL = {
    **{f"protocol.{name}": TAG for name in NAMES},
    "protocol.boxed": SWITCH,
    "protocol.calls": one_of(("tags", "json")),
    "protocol.template_options": or_null(SECTION),
    "protocol.template_tools": SWITCH,
    "protocol.result_template": TEXT,
    "protocol.passage_template": ANY_TEXT,
    "protocol.passage_separator": ANY_TEXT,
    "protocol.turn_template": _holding("{results}"),
    "protocol.stop": one_of(("answer", "call", "call_first", "end")),
    "protocol.parse": one_of(("last_tag", "first_pair")),
    "protocol.empty_query": TEXT,
    "protocol.no_results": ANY_TEXT,
    "protocol.value_template": _holding("{value}"),
    "protocol.error_template": _holding("{error}"),
    "protocol.faults": one_of(("own", "parsed", "executed")),
    "protocol.opening": ANY_TEXT,
    "protocol.invalid_turn": ANY_TEXT,
    "protocol.answer_rule": one_of(("last_turn", "first", "last", "last_text", "after_think")),
    "protocol.unwrap_text": SWITCH,
    "protocol.retokenise": SWITCH,
    "protocol.retokenise_whole": SWITCH,
    "protocol.neutralise": SWITCH,
}
LIMITS = {
    "limits.searches": integer(0),
    "limits.turn_tokens": integer(1),
    "limits.response_tokens": integer(1),
    "limits.passage_tokens": integer(0),
    "limits.block_tokens": or_null(integer(1)),
    "limits.total_tokens": or_null(integer(1)),
    "limits.call_seconds": ABOVE_0,
}
RETRIEVER = {
    "retriever.url": URL,
    "retriever.wire": TEXT,
    "retriever.top_k": integer(1, SERVER_MAXIMUM),
    "retriever.timeout": ABOVE_0,
    "retriever.deadline": ABOVE_0,
    "retriever.connections": integer(1),
    "retriever.cache_size": integer(0),
    "retriever.contents": SWITCH,
}


def rules_of(config: type, prefix: str = "") -> dict[str, Rule]:
    """The rules that annotate the fields of a dataclass; those of its sections as ``section.key``."""
    rules: dict[str, Rule] = {}
    for name, hint in get_type_hints(config, include_extras=True).items():
        if is_dataclass(hint) and isinstance(hint, type):
            rules |= {prefix + name: SECTION, **rules_of(hint, f"{prefix}{name}.")}
        for each in getattr(hint, "__metadata__", ()):
            rules[prefix + name] = each
    return rules


def flattened(values: Mapping[str, Any]) -> dict[str, Any]:
    """The keys and, as ``section.key``, those of their sections."""
    inner = {f"{name}.{key}": value for name in values for key, value in _items(values[name])}
    return {**inner, **values}


def _items(value: Any) -> list[tuple[Any, Any]]:
    return list(value.items()) if isinstance(value, Mapping) else []


def check(values: Mapping[str, Any], rules: Mapping[str, Rule], prefix: str = "") -> None:
    """Check the values that have a rule; a missing key is left to whatever needs it.

    Raises:
        ValueError: a value has no meaning; names key, reason and value.
    """
    for key, rule in rules.items():
        if key in values and not rule.holds(values[key]):
            raise ValueError(f"{prefix}{key} must be {rule.meaning}, not {values[key]!r}")


def check_limits(flat: Mapping[str, Any], prefix: str = "") -> None:
    """Raises ValueError if searches are allowed but none of their passages' tokens may be shown."""
    if flat.get("limits.searches") and flat.get("limits.passage_tokens") == 0:
        raise ValueError(f"{prefix}limits.passage_tokens must be at least 1 where searches are made")


def check_protocol(protocol: Protocol, prefix: str = "") -> None:
    """Raises ValueError if two tags have the same name, or the template of a passage cannot be filled in."""
    if len(set(protocol.names)) < len(protocol.names):
        raise ValueError(
            f"{prefix}protocol: {', '.join((*NAMES, *protocol.tools))} must have different names"
        )
    try:
        render_passage(Passage("1", "title\ntext", 1.0), 1, protocol)
    except (KeyError, ValueError, IndexError, AttributeError) as error:
        raise ValueError(
            f"{prefix}protocol.passage_template may hold {{rank}}, {{title}}, {{text}}, {{contents}}, "
            f"{{first_line}} and {{rest}}, not {protocol.passage_template!r}"
        ) from error
