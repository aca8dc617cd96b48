"""The loop: generate - call - inject - generate. One episode of a model that calls tools, token by token.

Training and evaluation run this very code. It knows neither veRL, nor HTTP, nor vLLM: it is handed a callable
that samples and the tools that may be called. Each episode is a coroutine of its own, so episodes of a batch
never wait for each other.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from research.episode.calls import read_call
from research.episode.tokens import ResultBlock, TokenProtocol
from research.episode.tools import SEARCH, CallFault, Tool, ToolError, ToolResult
from research.episode.trajectory import Call, Segment, Trajectory

NOTICE_FAILED = "The search failed. Search again, or answer from what is known."
NOTICE_NOTHING = "No results."


@dataclass(frozen=True)
class Generation:
    """What an engine sampled for one turn; ``log_probs`` (natural log) is as long as ``token_ids``."""

    token_ids: list[int]
    log_probs: list[float]


@dataclass(frozen=True)
class Limits:
    """Bounds of one episode, all in tokens but the first.

    Attributes:
        searches: calls of tools, searches and others, at most; a further one ends the episode.
        turn_tokens: sampled tokens a turn; a turn that reaches it without a closing tag ends the episode.
        response_tokens: the whole response, injected blocks included.
        passage_tokens: of one injected passage or other result; a longer one is cut between words.
    """

    searches: int
    turn_tokens: int
    response_tokens: int
    passage_tokens: int


Generate = Callable[[list[int], int], Awaitable[Generation]]
"""(token ids so far, maximum of new tokens) -> sampled tokens. Must stop at ``TokenProtocol.stop_*``."""


async def run_episode(
    prompt_ids: Sequence[int],
    generate: Generate,
    tools: Sequence[Tool],
    tokens: TokenProtocol,
    limits: Limits,
) -> Trajectory:
    """Let the model think, call tools and answer until it answers, ends its turn, or reaches a limit.

    Returns:
        A trajectory without reward. Its response never exceeds ``limits.response_tokens`` and never holds an
        injected block without its closing tag.

    Raises:
        RuntimeError: the engine returned no tokens. Whatever ``generate`` raises passes through; a ToolError
        does not.
    """
    trajectory = Trajectory(prompt_ids=list(prompt_ids))
    while trajectory.finish_reason is None:
        tag = await _model_turn(trajectory, generate, tokens, limits)
        if tag in (None, tokens.answer_stop):
            break
        if len(trajectory.calls) >= limits.searches:
            trajectory.finish_reason = "search_limit"
        elif not await _tool_turn(trajectory, tools, tokens, limits):
            trajectory.finish_reason = "length"
    return trajectory


async def _model_turn(
    trajectory: Trajectory, generate: Generate, tokens: TokenProtocol, limits: Limits
) -> str | None:
    """Sample one turn; returns the closing tag it ended at, or None. Sets the finish reason unless it
    calls a tool.
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
    elif tag == tokens.answer_stop:
        trajectory.finish_reason = "answer"
    return tag


async def _tool_turn(
    trajectory: Trajectory, tools: Sequence[Tool], tokens: TokenProtocol, limits: Limits
) -> bool:
    """Make the call that the last turn asked for and inject its result; False if the block does not fit."""
    # The model must be able to sample at least one more token, else the block would be its last word.
    room = limits.response_tokens - trajectory.response_length - 1
    record, notice = await _call(trajectory.model_turns[-1], tools, tokens)
    trajectory.calls.append(record)
    if notice is not None:
        block = tokens.notice_block(notice, room)
    elif record.passages:
        block = tokens.result_block(record.passages, room, limits.passage_tokens)
    else:
        block = tokens.text_block(record.text, room, limits.passage_tokens)
    return _inject(trajectory, record, block)


async def _call(turn: str, tools: Sequence[Tool], tokens: TokenProtocol) -> tuple[Call, str | None]:
    """The record of a call, and the notice to show if there is nothing to show."""
    try:
        call = read_call(turn, tools, tokens.protocol)
    except CallFault as fault:
        return Call(None, error=str(fault)), str(fault)
    record, started = Call(call.text, tool=call.tool.name), time.perf_counter()
    try:
        result = await call.tool(call.arguments)
    except ToolError as error:
        record.seconds, record.error = time.perf_counter() - started, str(error)
        return record, NOTICE_FAILED if call.tool.name == SEARCH else f"The call failed: {record.error}"
    record.seconds = time.perf_counter() - started
    record.passages, record.text = list(result.passages), result.text
    return record, None if result != ToolResult() else NOTICE_NOTHING


def _inject(trajectory: Trajectory, record: Call, block: ResultBlock | None) -> bool:
    if block is None:
        return False
    record.shown = block.shown
    trajectory.segments.append(
        Segment("environment", block.token_ids, [0.0] * len(block.token_ids), block.text)
    )
    return True
