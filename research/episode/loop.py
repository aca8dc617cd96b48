"""The search loop: generate - search - inject - generate. One episode of a model that searches, token in,
token out.

Training and evaluation run this very code. It knows neither veRL, nor HTTP, nor vLLM: it is handed two
callables. Each episode is a coroutine of its own, so episodes of a batch never wait for each other.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from research.episode.protocol import parse_query
from research.episode.tokens import ResultBlock, TokenProtocol
from research.episode.trajectory import Passage, Search, Segment, Trajectory

NOTICE_FAILED = "The search failed. Search again, or answer from what is known."
NOTICE_NO_QUERY = "There was no query between the search tags."
NOTICE_NOTHING = "No results."


class SearchError(Exception):
    """A search that failed for good, after the client's own retries. Costs one turn of one trajectory.

    `lasting`: no other search would fare better, since nobody listens there, or another kind of server.
    """

    def __init__(self, message: str, lasting: bool = False) -> None:
        super().__init__(message)
        self.lasting = lasting


@dataclass(frozen=True)
class Generation:
    """What an engine sampled for one turn; ``log_probs`` (natural log) is as long as ``token_ids``."""

    token_ids: list[int]
    log_probs: list[float]


@dataclass(frozen=True)
class Limits:
    """Bounds of one episode, all in tokens but the first.

    Attributes:
        searches: searches at most; a further one ends the episode.
        turn_tokens: sampled tokens a turn; a turn that reaches it without a closing tag ends the episode.
        response_tokens: the whole response, injected blocks included.
        passage_tokens: of one injected passage; a longer one is cut between words.
    """

    searches: int
    turn_tokens: int
    response_tokens: int
    passage_tokens: int


Generate = Callable[[list[int], int], Awaitable[Generation]]
"""(token ids so far, maximum of new tokens) -> sampled tokens. Must stop at ``TokenProtocol.stop_*``."""
SearchFunction = Callable[[str], Awaitable[list[Passage]]]
"""query -> passages, best first. Raises SearchError."""


async def run_episode(
    prompt_ids: Sequence[int],
    generate: Generate,
    search: SearchFunction,
    tokens: TokenProtocol,
    limits: Limits,
) -> Trajectory:
    """Let the model think, search and answer until it answers, ends its turn, or reaches a limit.

    Returns:
        A trajectory without reward. Its response never exceeds ``limits.response_tokens`` and never holds an
        injected block without its closing tag.

    Raises:
        RuntimeError: the engine returned no tokens. Whatever ``generate`` raises passes through; a
        SearchError does not.
    """
    trajectory = Trajectory(prompt_ids=list(prompt_ids))
    while trajectory.finish_reason is None:
        tag = await _model_turn(trajectory, generate, tokens, limits)
        if tag != tokens.stop_tags[0]:
            break
        if len(trajectory.searches) >= limits.searches:
            trajectory.finish_reason = "search_limit"
        elif not await _search_turn(trajectory, search, tokens, limits):
            trajectory.finish_reason = "length"
    return trajectory


async def _model_turn(
    trajectory: Trajectory, generate: Generate, tokens: TokenProtocol, limits: Limits
) -> str | None:
    """Sample one turn; returns the closing tag it ended at, or None. Sets the finish reason unless it
    searches.
    """
    budget = min(limits.turn_tokens, limits.response_tokens - trajectory.response_length)
    started = time.perf_counter()
    generation = await generate(trajectory.prompt_ids + trajectory.response_ids, budget)
    trajectory.generate_seconds += time.perf_counter() - started
    if not generation.token_ids:
        raise RuntimeError("the engine returned no tokens for a turn")
    kept, tag = tokens.cut(generation.token_ids[:budget])
    segment = Segment("model", kept, generation.log_probs[: len(kept)], tokens.said(kept))
    trajectory.segments.append(segment)
    if tag is None:
        trajectory.finish_reason = "eos" if kept[-1] in tokens.eos_token_ids else "length"
    elif tag == tokens.stop_tags[1]:
        trajectory.finish_reason = "answer"
    return tag


async def _search_turn(
    trajectory: Trajectory, search: SearchFunction, tokens: TokenProtocol, limits: Limits
) -> bool:
    """Run the search that the last turn asked for and inject what it found; False if the block does not
    fit.
    """
    # The model must be able to sample at least one more token, else the block would be its last word.
    room = limits.response_tokens - trajectory.response_length - 1
    record, notice = await _run_search(parse_query(trajectory.model_turns[-1], tokens.protocol), search)
    trajectory.searches.append(record)
    if notice is None:
        block = tokens.result_block(record.passages, room, limits.passage_tokens)
    else:
        block = tokens.notice_block(notice, room)
    return _inject(trajectory, record, block)


async def _run_search(query: str | None, search: SearchFunction) -> tuple[Search, str | None]:
    """The record of a search, and the notice to show if there are no passages to show."""
    if not query:
        return Search(query, error="no query"), NOTICE_NO_QUERY
    started = time.perf_counter()
    try:
        passages = await search(query)
    except SearchError as error:
        return Search(query, error=str(error), seconds=time.perf_counter() - started), NOTICE_FAILED
    record = Search(query, passages, seconds=time.perf_counter() - started)
    return record, None if passages else NOTICE_NOTHING


def _inject(trajectory: Trajectory, record: Search, block: ResultBlock | None) -> bool:
    if block is None:
        return False
    record.shown = block.shown
    trajectory.segments.append(
        Segment("environment", block.token_ids, [0.0] * len(block.token_ids), block.text)
    )
    return True
