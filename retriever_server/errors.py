"""The exceptions that others are to know: a mistake of the user's, and a service that cannot answer now."""

BUILD_AGAIN = "build the index again with --force"


class RetrieverError(Exception):
    """A wrong file, option or index. Its message is one line that says what is wrong and what to do."""


class TooLittleMemory(RetrieverError):
    """It may be enough another time: what is made already is worth keeping."""


class Unavailable(Exception):
    """No answer now, but probably in `retry_after_s` seconds: a full queue, a part of the index that is gone.

    HTTP answers 503 with Retry-After; whatever else waited in the same batch gets the same answer.
    """

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Closed(Exception):
    """The searcher takes no more queries: another one has taken its place, or the server ends."""
