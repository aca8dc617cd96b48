"""A response in pieces by author and tag, for all that shows trajectories to people. Pure functions."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from research.episode.protocol import Protocol
from research.episode.trajectory import Segment, Trajectory


@dataclass(frozen=True)
class Piece:
    """A stretch of a response. ``kind``: think, search, answer or text of the model, result of the
    environment.
    """

    kind: str
    text: str


def pieces(trajectory: Trajectory, protocol: Protocol) -> list[Piece]:
    """The response from its first character to its last."""
    return [piece for segment in trajectory.segments for piece in segment_pieces(segment, protocol)]


def segment_pieces(segment: Segment, protocol: Protocol) -> list[Piece]:
    """One segment; what the environment wrote is one piece, whatever tags it holds."""
    if segment.author == "environment":
        return [Piece("result", segment.text)]
    names = {
        protocol.think: "think",
        protocol.answer: "answer",
        **dict.fromkeys(protocol.call_tags, "search"),
    }
    return list(_model_pieces(segment.text, names))


def _model_pieces(text: str, kinds: dict[str, str]) -> Iterator[Piece]:
    """A tag reaches to its end, to the next tag that opens, or to the end of the text."""
    names = "|".join(map(re.escape, kinds))
    position = 0
    for found in re.finditer(rf"<({names})>.*?(?:</\1>|(?=<(?:{names})>)|\Z)", text, re.DOTALL):
        yield from _plain(text[position : found.start()])
        yield Piece(kinds[found[1]], found.group())
        position = found.end()
    yield from _plain(text[position:])


def _plain(text: str) -> Iterator[Piece]:
    if text.strip():
        yield Piece("text", text)
