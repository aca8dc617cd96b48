"""Errors that end a command with one line, and warnings that do not."""

import click


class DataError(click.ClickException, ValueError):
    """Data that cannot be read, fetched or written; the message is one line that says what to do about it.

    A command that does not catch it ends with `Error: MESSAGE` and exit code 1, without a traceback.
    """


def reason_of(error: BaseException) -> str:
    """The kind of an error and its message, on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def warn(message: str) -> None:
    """Print a warning in red, to stderr."""
    click.secho(f"WARNING: {message}", fg="red", bold=True, err=True)
