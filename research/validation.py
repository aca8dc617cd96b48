"""Checks of others' data against our types."""

from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

Checked = TypeVar("Checked")


def checked(adapter: TypeAdapter[Checked], value: Any) -> Checked:
    """The value as an object of the adapter's type.

    Raises:
        ValueError: it does not fit; a one-line message names the field and says why.
    """
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        raise ValueError(first_fault(error)) from None


def first_fault(error: ValidationError) -> str:
    """The field and what is wrong with it, in one line."""
    first = error.errors(include_url=False, include_input=False)[0]
    return ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
