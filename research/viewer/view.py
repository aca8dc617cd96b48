"""One trajectory as the page shows it: segments in pieces, searches with their passages, reward."""

import math
from dataclasses import asdict
from typing import Any

from research.episode.pieces import segment_pieces, with_called_tools
from research.episode.protocol import Protocol
from research.episode.trajectory import Call, Segment, Trajectory
from research.metrics.answers import normalize_answer
from research.viewer.query import Entry
from research.viewer.rows import Row, metadata_texts


def entry_view(entry: Entry) -> dict[str, Any]:
    """A line of the list; a missing side is None."""
    return {side: row and _row(row) for side, row in entry._asdict().items()}


def trajectory_view(row: Row, trajectory: Trajectory, protocol: Protocol) -> dict[str, Any]:
    """All of a trajectory except its prompt, which the record has as token ids only.

    The environment's segments are the results of the searches, in order; the last search may have none.
    """
    protocol = with_called_tools(protocol, trajectory)
    golden_answers = metadata_texts(trajectory, "golden_answers")
    normal = [f" {normalize_answer(answer)} " for answer in golden_answers]
    view = {
        **_row(row),
        "reward": trajectory.reward,
        "golden_answers": golden_answers,
        "reward_reason": trajectory.reward_reason,
        "metrics": trajectory.metrics,
        "metadata": trajectory.metadata,
        "prompt_tokens": len(trajectory.prompt_ids),
        "generate_seconds": trajectory.generate_seconds,
        "segments": [_segment(segment, protocol) for segment in trajectory.segments],
        "found_searches": [_call(call, *_gold_names(trajectory), normal) for call in trajectory.calls],
        "gold": gold_found(trajectory),
    }
    return {name: _named_if_not_finite(value) for name, value in view.items()}


def _row(row: Row) -> dict[str, Any]:
    return {"key": row.key, **asdict(row)}


def _segment(segment: Segment, protocol: Protocol) -> dict[str, Any]:
    return {
        "author": segment.author,
        "pieces": [asdict(piece) for piece in segment_pieces(segment, protocol)],
        "token_ids": segment.token_ids,
        "log_probs": segment.log_probs,
    }


def _call(call: Call, ids: set[str], titles: set[str], normal_answers: list[str]) -> dict[str, Any]:
    """A call with its passages: whether the metadata names them as gold, and whether they hold an answer.

    An answer is held as whole words, after the normalisation of exact match.
    """
    passages = []
    for number, passage in enumerate(call.passages):
        title, _, text = passage.contents.partition("\n")
        view = {"id": passage.id, "title": title, "text": text, "score": passage.score}
        gold = "id" if passage.id in ids else "title" if _plain_title(title) in titles else ""
        normal = f" {normalize_answer(passage.contents)} "
        held = any(answer in normal for answer in normal_answers)
        passages.append({**view, "shown": number < call.shown, "gold": gold, "answer": held})
    query = call.query if call.tool in ("", "search") else f"{call.tool} {call.query}"
    return {"query": query, "error": call.error, "seconds": call.seconds, "passages": passages}


def gold_found(trajectory: Trajectory) -> dict[str, int] | None:
    """How many gold passages there are, and how many the model was shown; None if the metadata names none.

    Counted by title if no id matches: the ids may be those of another corpus.
    """
    ids, titles = _gold_names(trajectory)
    if not ids and not titles:
        return None
    shown = [passage for search in trajectory.searches for passage in search.passages[: search.shown]]
    by_id, by_title = {each.id for each in shown} & ids, {_plain_title(each.title) for each in shown} & titles
    if by_id or not titles:
        return {"total": len(ids), "found": len(by_id)}
    return {"total": len(titles), "found": len(by_title)}


def _gold_names(trajectory: Trajectory) -> tuple[set[str], set[str]]:
    ids, titles = (metadata_texts(trajectory, f"supporting_{names}") for names in ("ids", "titles"))
    return set(ids), set(map(_plain_title, titles))


def _plain_title(text: str) -> str:
    return text.strip().strip('"').casefold()


def _named_if_not_finite(value: Any) -> Any:
    """The same with ``nan`` and ``-inf`` as text, because JSON has no such numbers."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {name: _named_if_not_finite(each) for name, each in value.items()}
    return [_named_if_not_finite(each) for each in value] if isinstance(value, list) else value
