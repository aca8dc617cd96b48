"""Tables as text."""

from collections.abc import Sequence


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, padded so that a terminal shows it well; the first row is the header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    header, *body = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows)
    rule = ["-" * width for width in widths]
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, rule, *body])
