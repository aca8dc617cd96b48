"""The HTML of StackExchange posts as plain text: paragraphs on lines of their own, code as it stands."""

import re
from html import unescape

BLOCKS = frozenset(
    ("p", "pre", "div", "blockquote", "ul", "ol", "li", "h1", "h2", "h3", "h4", "h5", "h6", "hr")
    + ("table", "tr", "dl", "dt", "dd", "section", "article", "details", "summary")
)
# Rendered posts start with a block. Markdown and code may hold tags too, but not as the first thing.
RENDERED = re.compile(rf"\s*<({'|'.join(sorted(BLOCKS))})\b[^<>]*>", re.IGNORECASE)
HIDDEN = frozenset(("script", "style"))
SPACES = re.compile(r"[ \t\r\n\f\v]+")
# A comment, a hidden element, a tag, another declaration. None reaches past the next "<" to see whether it
# ends, or else it takes all that is left: so broken HTML, too, is read in one pass (html.parser reads it in
# quadratic time).
MARKUP = re.compile(
    r"<!--.*?(?:-->|\Z)"
    rf"|<({'|'.join(sorted(HIDDEN))})\b[^<>]*+>.*?(?:</\1\b[^<>]*+>|\Z)"
    r"|<(?P<close>/?)(?P<name>[a-z][^\s/<>]*+)(?:\"[^\"<]*+\"|'[^'<]*+'|[^<>])*+>"
    r"|<[!?/][^<>]*+>",
    re.IGNORECASE | re.DOTALL,
)
HUGE_NUMBER = re.compile(r"&#[0-9]{20,}+")  # of no character; Python refuses to read longer ones


def is_html(text: str) -> bool:
    """Whether a text is rendered HTML; plain text that mentions a tag, or compares with <, is not."""
    return RENDERED.match(text) is not None


def plain_text(html: str) -> str:
    """What a reader sees: no tags, no link targets; broken HTML is read as far as it goes."""
    reader, position = _Reader(), 0
    for found in MARKUP.finditer(html):
        reader.read_text(html[position : found.start()])
        if name := found["name"]:
            (reader.end if found["close"] else reader.start)(name.lower())
        position = found.end()
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
        """End the line, unless nothing stands there yet: a list's mark and the paragraph in it share one."""
        if self._parts and self._parts[-1] != "- ":
            self._parts.append(lines)
