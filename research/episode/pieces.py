"""A response in pieces by author and tag, for all that shows trajectories to people. Pure functions."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from research.episode.protocol import Protocol
from research.episode.trajectory import Segment, Trajectory

_CLOSED_LAST = re.compile(r"</(\w+)>[^<>]*\Z")


@dataclass(frozen=True)
class Piece:
    """A stretch of a response. ``kind``: think, search (any call), answer, text, or result (injected)."""

    kind: str
    text: str


def pieces(trajectory: Trajectory, protocol: Protocol) -> list[Piece]:
    """The response from its first character to its last."""
    protocol = with_called_tools(protocol, trajectory)
    return [piece for segment in trajectory.segments for piece in segment_pieces(segment, protocol)]


def with_called_tools(protocol: Protocol, trajectory: Trajectory) -> Protocol:
    """The protocol with the tags of all tools that an episode called.

    Read from the episode itself, because the tools of its run may be modules that are not at hand: a turn
    that the environment answered, or that asked for one call too many, ended in the tag of a call.
    """
    segments = trajectory.segments
    turns = [each for each, after in pairwise(segments) if after.author == "environment"]
    turns += segments[-1:] if trajectory.finish_reason == "search_limit" else []
    closed = [found[1] for turn in turns if (found := _CLOSED_LAST.search(turn.text))]
    called = dict.fromkeys([*(call.tool for call in trajectory.calls), *closed])
    return protocol.with_tools(name for name in called if name and name not in protocol.names)


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
