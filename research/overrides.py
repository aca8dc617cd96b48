"""key=value overrides of a hydra configuration, for the command lines of trainings and evaluations."""

import re
from typing import Any

# Whole strings, one after the other, so that nothing inside a string is taken for a key.
_QUOTED = re.compile(r"""("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')(?=(\s*:)?)""")


def composition_fault(error: Exception) -> str:
    """A Hydra error in one line. Hydra suggests adding a misspelt key, which does not help."""
    return re.sub(
        r"To append to your config use (\S+)",
        r"There is no such key in research/config or veRL's own (\1 adds one that has no default)",
        " ".join(str(error).partition("Config search path:")[0].split()),
    )


def quoted(value: Any) -> str:
    """A value, or a list of values, in hydra's grammar, whatever characters it holds."""
    if value is None:
        return "null"
    if isinstance(value, list):
        return f"[{','.join(map(quoted, value))}]"
    return str(value) if isinstance(value, int) else _quoted_text(str(value))


def _quoted_text(text: str) -> str:
    # Backslashes are literal, except before a quote.
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", text)
    return "'" + re.sub(r"(\\+)$", r"\1\1", escaped) + "'"


def as_hydra_word(word: str) -> str:
    """A user's override in hydra's grammar.

    Hydra knows neither quoted keys, ``key={"name:x": value}``, nor bare texts with colons, blanks or braces,
    such as prompts and their paths.
    """
    key, equals, value = word.partition("=")
    if key.split(".")[-1] == "prompt" and value not in ("", "null") and not _is_quoted(value):
        return key + equals + _quoted_text(value)
    if not value.startswith("{"):
        return word
    return key + equals + _QUOTED.sub(lambda match: _escaped(match[1]) if match[2] else match[0], value)


def _is_quoted(value: str) -> bool:
    return len(value) > 1 and value[0] == value[-1] and value[0] in "'\""


def _escaped(key: str) -> str:
    return re.sub(r"([\\()\[\]{}:=, \t])", r"\\\1", key[1:-1])
