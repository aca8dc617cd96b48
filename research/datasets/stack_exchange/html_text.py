"""The HTML of StackExchange posts as plain text: a line per paragraph, code unchanged."""

import re
from html import unescape

BLOCKS = frozenset(
    ("p", "pre", "div", "blockquote", "ul", "ol", "li", "h1", "h2", "h3", "h4", "h5", "h6", "hr")
    + ("table", "tr", "dl", "dt", "dd", "section", "article", "details", "summary")
)
# Rendered posts start with a block. Markdown and code may hold tags too, but do not start with one.
RENDERED = re.compile(rf"\s*<({'|'.join(sorted(BLOCKS))})\b[^<>]*>", re.IGNORECASE)
HIDDEN = frozenset(("script", "style"))
SPACES = re.compile(r"[ \t\r\n\f\v]+")
# A comment, a hidden element, a tag, another declaration. None looks past the next "<" for its end, or else
# it takes all that is left: so even broken HTML is read in one pass (html.parser takes quadratic time).
MARKUP = re.compile(
    r"<!--.*?(?:-->|\Z)"
    rf"|<({'|'.join(sorted(HIDDEN))})\b[^<>]*+>.*?(?:</\1\b[^<>]*+>|\Z)"
    r"|<(?P<close>/?)(?P<name>[a-z][^\s/<>]*+)(?:\"[^\"<]*+\"|'[^'<]*+'|[^<>])*+>"
    r"|<[!?/][^<>]*+>",
    re.IGNORECASE | re.DOTALL,
)
HUGE_NUMBER = re.compile(r"&#[0-9]{20,}+")  # no character; Python refuses to parse thousands of digits


def is_html(text: str) -> bool:
    """Whether a text is rendered HTML; plain text that mentions a tag, or compares with <, is not."""
    return RENDERED.match(text) is not None


def plain_text(html: str) -> str:
    """What a reader sees: no tags, no link targets; broken HTML is read as far as possible."""
    reader, position = _Reader(), 0
    for match in MARKUP.finditer(html):
        reader.read_text(html[position : match.start()])
        if name := match["name"]:
            (reader.end if match["close"] else reader.start)(name.lower())
        position = match.end()
    reader.read_text(html[position:])
    return reader.text()


def plain_title(title: str) -> str:
    """A title, which StackExchange gives with entities but without tags."""
    return " ".join(_unescaped(title).split())


def _unescaped(text: str) -> str:
    return unescape(HUGE_NUMBER.sub("\ufffd", text))


class _Reader:
    def __init__(self) -> None:
        self._parts: list[str] = []
        self._pre = 0

    def text(self) -> str:
        lines = (line.rstrip() for line in "".join(self._parts).split("\n"))
        return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()

    def start(self, tag: str) -> None:
        if tag in BLOCKS or tag == "br":
            self._break("\n" if tag in ("br", "li", "tr") else "\n\n")
        self._pre += tag == "pre"
        if tag == "li":
            self._parts.append("- ")

    def end(self, tag: str) -> None:
        self._pre = max(self._pre - (tag == "pre"), 0)
        if tag in BLOCKS:
            self._break("\n" if tag in ("li", "tr") else "\n\n")
        if tag in ("td", "th"):
            self._parts.append(" ")

    def read_text(self, html: str) -> None:
        data = _unescaped(html)
        if not self._pre:
            data = SPACES.sub(" ", data)
            if not self._parts or self._parts[-1][-1:].isspace():
                data = data.lstrip(" ")
        if data:
            self._parts.append(data)

    def _break(self, lines: str) -> None:
        """End the line, unless it is empty: a list's mark and the paragraph after it share one."""
        if self._parts and self._parts[-1] != "- ":
            self._parts.append(lines)
