"""The HTML of StackExchange posts as plain text: paragraphs on lines of their own, code as it stands."""

import re
from html import unescape
from html.parser import HTMLParser

BLOCKS = frozenset(
    ("p", "pre", "div", "blockquote", "ul", "ol", "li", "h1", "h2", "h3", "h4", "h5", "h6", "hr")
    + ("table", "tr", "dl", "dt", "dd", "section", "article", "details", "summary")
)
# Rendered posts start with a block. Markdown and code may hold tags too, but not as the first thing.
RENDERED = re.compile(rf"\s*<({'|'.join(sorted(BLOCKS))})\b[^<>]*>", re.IGNORECASE)
HIDDEN = frozenset(("script", "style"))
SPACES = re.compile(r"[ \t\r\n\f\v]+")


def is_html(text: str) -> bool:
    """Whether a text is rendered HTML; plain text that mentions a tag, or compares with <, is not."""
    return RENDERED.match(text) is not None


def plain_text(html: str) -> str:
    """What a reader sees: no tags, no link targets; broken HTML is read as far as it goes."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    return reader.text()


def plain_title(title: str) -> str:
    """A title, which StackExchange gives with entities but without tags."""
    return " ".join(unescape(title).split())


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._parts: list[str] = []
        self._pre = self._hidden = 0

    def text(self) -> str:
        lines = (line.rstrip() for line in "".join(self._parts).split("\n"))
        return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden += tag in HIDDEN
        if tag in BLOCKS or tag == "br":
            self._break("\n" if tag in ("br", "li", "tr") else "\n\n")
        self._pre += tag == "pre"
        if tag == "li":
            self._parts.append("- ")

    def handle_endtag(self, tag: str) -> None:
        self._hidden = max(self._hidden - (tag in HIDDEN), 0)
        self._pre = max(self._pre - (tag == "pre"), 0)
        if tag in BLOCKS:
            self._break("\n" if tag in ("li", "tr") else "\n\n")
        if tag in ("td", "th"):
            self._parts.append(" ")

    def handle_data(self, data: str) -> None:
        if self._hidden:
            return
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
