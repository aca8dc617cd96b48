"""Values as words of a hydra configuration, key=value, for the command lines of trainings and evaluations."""

import re
from typing import Any

# Strings whole, one after the other, so that what looks like a key inside one is none.
_QUOTED = re.compile(r"""("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')(?=(\s*:)?)""")


def quoted(value: Any) -> str:
    """A value, or a list of them, as hydra's grammar takes it, whatever characters it holds."""
    if value is None:
        return "null"
    if isinstance(value, list):
        return f"[{','.join(map(quoted, value))}]"
    return str(value) if isinstance(value, int) else _quoted_text(str(value))


def _quoted_text(text: str) -> str:
    # Backslashes stand for themselves, but not before a quote.
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", text)
    return "'" + re.sub(r"(\\+)$", r"\1\1", escaped) + "'"


def as_hydra_word(word: str) -> str:
    """A user's word as hydra's grammar takes it, which knows neither quoted keys, ``key={"name:x": value}``,
    nor a bare text with colons, blanks or braces, as prompts and paths to them have.
    """
    key, equals, value = word.partition("=")
    if key.split(".")[-1] == "prompt" and value not in ("", "null") and not _is_quoted(value):
        return key + equals + _quoted_text(value)
    if not value.startswith("{"):
        return word
    return key + equals + _QUOTED.sub(lambda found: _escaped(found[1]) if found[2] else found[0], value)


def _is_quoted(value: str) -> bool:
    return len(value) > 1 and value[0] == value[-1] and value[0] in "'\""


def _escaped(key: str) -> str:
    return re.sub(r"([\\()\[\]{}:=, \t])", r"\\\1", key[1:-1])
