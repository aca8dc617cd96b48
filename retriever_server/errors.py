"""The package's exceptions: a mistake of the user's, and a service that cannot answer now."""

BUILD_AGAIN = "build the index again with --force"


class RetrieverError(Exception):
    """A wrong file, option or index; the message is one line that says what is wrong and what to do."""


class TooLittleMemory(RetrieverError):
    """Too little memory right now: a later attempt may succeed, so finished work is worth keeping."""


class Unavailable(Exception):
    """No answer now, but probably in `retry_after_s` seconds: a full queue, or a missing part of the index.

    HTTP answers 503 with Retry-After; everything else in the same batch gets the same answer.
    """

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Closed(Exception):
    """The searcher takes no more queries: another one has replaced it, or the server is shutting down."""


def first_line(error: BaseException) -> str:
    """The first line of the error's message, or its type if the message is empty."""
    return next(iter(str(error).splitlines()), type(error).__name__)
