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
    return str(value) if isinstance(value, int) else "'" + str(value).replace("'", "\\'") + "'"


def with_escaped_keys(word: str) -> str:
    """A word ``key={"name:x": value}`` as hydra's grammar takes it, which knows no quoted keys."""
    key, equals, value = word.partition("=")
    if not value.startswith("{"):
        return word
    return key + equals + _QUOTED.sub(lambda found: _escaped(found[1]) if found[2] else found[0], value)


def _escaped(key: str) -> str:
    return re.sub(r"([\\()\[\]{}:=, \t])", r"\\\1", key[1:-1])
