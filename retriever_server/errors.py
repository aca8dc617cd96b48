"""The one exception that stands for a mistake of the user's."""

BUILD_AGAIN = "build the index again with --force"


class RetrieverError(Exception):
    """A wrong file, option or index. Its message is one line that says what is wrong and what to do."""
