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
MARK = "- "
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
    parts: list[str] = []
    preformatted = position = 0
    for match in MARKUP.finditer(html):
        _add_text(parts, html[position : match.start()], preformatted)
        position = match.end()
        tag, closes = (match["name"] or "").lower(), bool(match["close"])
        if tag == "pre":
            preformatted = max(preformatted + (-1 if closes else 1), 0)
        # Not after a list's mark: it and the paragraph after it share a line.
        if parts and parts[-1] != MARK and (tag in BLOCKS or (tag == "br" and not closes)):
            parts.append("\n" if tag in ("br", "li", "tr") else "\n\n")
        if tag == "li" and not closes:
            parts.append(MARK)
        elif tag in ("td", "th") and closes:
            parts.append(" ")
    _add_text(parts, html[position:], preformatted)
    lines = (line.rstrip() for line in "".join(parts).split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def plain_title(title: str) -> str:
    """A title, which StackExchange gives with entities but without tags."""
    return " ".join(_unescaped(title).split())


def _unescaped(text: str) -> str:
    return unescape(HUGE_NUMBER.sub("\ufffd", text))


def _add_text(parts: list[str], html: str, preformatted: int) -> None:
    text = _unescaped(html)
    if not preformatted:
        text = SPACES.sub(" ", text)
        if not parts or parts[-1][-1:].isspace():
            text = text.lstrip(" ")
    if text:
        parts.append(text)
