"""Values as words of a hydra configuration, key=value, for the command lines of trainings and evaluations."""

from typing import Any


def quoted(value: Any) -> str:
    """A value, or a list of them, as hydra's grammar takes it, whatever characters it holds."""
    if value is None:
        return "null"
    if isinstance(value, list):
        return f"[{','.join(map(quoted, value))}]"
    return str(value) if isinstance(value, int) else "'" + str(value).replace("'", "\\'") + "'"
