"""The loop: generate - call - inject - generate. One episode of a model that calls tools, token by token.

Training and evaluation run this very code. It knows neither veRL, nor HTTP, nor vLLM: it receives a callable
that samples and the tools that may be called. Each episode is a coroutine of its own, so episodes of a batch
never wait for each other.
"""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from research.episode.calls import ANSWERED, ENDED, INVALID, next_step, read_call, written_calls
from research.episode.protocol import Protocol
from research.episode.tokens import ResultBlock, TokenProtocol
from research.episode.tools import SEARCH, CallFault, Tool, ToolError, ToolResult, UnreadableCall
from research.episode.trajectory import Call, FinishReason, Segment, Trajectory

NOTICE_FAILED = "The search failed. Search again, or answer from what is known."


@dataclass(frozen=True)
class Generation:
    """What an engine sampled for one turn; ``log_probs`` (natural log) is as long as ``token_ids``."""

    token_ids: list[int]
    log_probs: list[float]


@dataclass(frozen=True)
class Limits:
    """Bounds of one episode, in tokens unless they say otherwise.

    Attributes:
        searches: most turns that may call tools, searches or others; a further one ends the episode.
        turn_tokens: sampled tokens per turn; a turn that reaches it without a closing tag ends the episode.
        response_tokens: the whole response, injected blocks included.
        passage_tokens: one injected passage or other result; a longer one is cut between words.
        block_tokens: everything injected after a turn; a longer block is cut anywhere, even in its tags.
        total_tokens: prompt and response together; a turn that ends beyond is answered, but is the last.
        call_seconds: seconds for one call of a tool; a call that takes longer fails.
    """

    searches: int
    turn_tokens: int
    response_tokens: int
    passage_tokens: int
    block_tokens: int | None = None
    total_tokens: int | None = None
    call_seconds: float = 300.0

    def room(self, trajectory: Trajectory) -> int:
        """Tokens that may still follow."""
        return self.response_tokens - trajectory.response_length

    def are_spent(self, length: int) -> bool:
        """Whether no turn may follow one that ends at this length."""
        return self.total_tokens is not None and length >= self.total_tokens


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
        A trajectory without reward. Its response never exceeds ``limits.response_tokens`` and, unless
        ``limits.block_tokens`` cuts it, never holds an injected block without its closing tag.

    Raises:
        RuntimeError: the engine returned no tokens. Whatever ``generate`` raises passes through; a ToolError
            does not.
    """
    trajectory = Trajectory(prompt_ids=list(prompt_ids))
    while trajectory.finish_reason is None:
        tag, length = await _model_turn(trajectory, generate, tokens, limits)
        ended = tokens.has_ended(trajectory.segments[-1].token_ids)
        step = next_step(trajectory.model_turns[-1], tag, tokens.protocol, ended)
        if step in (ANSWERED, ENDED):
            trajectory.finish_reason = _ending(trajectory, step, tokens)
        elif trajectory.environment_turns >= limits.searches:
            trajectory.finish_reason = "search_limit"
        elif not await _environment_turn(trajectory, step, tools, tokens, limits) or limits.are_spent(length):
            trajectory.finish_reason = "length"
    return trajectory


async def _model_turn(
    trajectory: Trajectory, generate: Generate, tokens: TokenProtocol, limits: Limits
) -> tuple[str | None, int]:
    """Sample one turn; returns the closing tag it ended at, or None, and the tokens up to its end."""
    room = limits.room(trajectory)
    budget = min(limits.turn_tokens, room)
    context = trajectory.prompt_ids + trajectory.response_ids
    if tokens.protocol.retokenise and tokens.protocol.retokenise_whole:
        context = tokens.encode(tokens.decode(context))
    started = time.perf_counter()
    generation = await generate(context, budget)
    trajectory.generate_seconds += time.perf_counter() - started
    if not generation.token_ids:
        raise RuntimeError("the engine returned no tokens for a turn")
    kept, tag = tokens.cut(generation.token_ids[:budget])
    length = len(context) + len(kept)
    log_probs = generation.log_probs[: len(kept)]
    if tokens.protocol.retokenise:
        kept = tokens.retokenised(kept, tag)[: min(budget + (tokens.protocol.stop == "end"), room)]
        log_probs = [0.0] * len(kept)
    segment = Segment("model", kept, log_probs, tokens.said(kept))
    trajectory.segments.append(segment)
    return tag, length


def _ending(trajectory: Trajectory, step: str, tokens: TokenProtocol) -> FinishReason:
    if step == ANSWERED:
        return "answer"
    return "eos" if tokens.has_ended(trajectory.segments[-1].token_ids) else "length"


async def _environment_turn(
    trajectory: Trajectory, step: str, tools: Sequence[Tool], tokens: TokenProtocol, limits: Limits
) -> bool:
    """Answer the calls of the last turn, or say that it was invalid; False if the answer does not fit."""
    # The model must be able to sample at least one more token, else the block would be its last word.
    room = limits.room(trajectory) - 1
    if step == INVALID:
        _drop_end(trajectory.segments[-1], tokens)
        trajectory.calls.append(Call(None, error="neither a call nor an answer", tool=""))
        text = tokens.protocol.invalid_turn
        block: ResultBlock | None = ResultBlock(tokens.encode(text), text, 0)
    else:
        written: list[Written] = [*written_calls(trajectory.model_turns[-1], tokens.protocol)] or [None]
        calls = (_call(each, tools, tokens, limits.call_seconds) for each in written)
        answers = await asyncio.gather(*calls)
        trajectory.calls += [record for record, _ in answers]
        block = _results(written, answers, room, tokens, limits)
    if block is None or len(block.token_ids) > room:
        return False
    trajectory.segments.append(
        Segment("environment", block.token_ids, [0.0] * len(block.token_ids), block.text)
    )
    return True


def _drop_end(segment: Segment, tokens: TokenProtocol) -> None:
    """Take the end token from a turn that goes on."""
    if tokens.has_ended(segment.token_ids):
        del segment.token_ids[-1], segment.log_probs[-1]


Written = tuple[str, str] | None


async def _call(
    written: Written, tools: Sequence[Tool], tokens: TokenProtocol, seconds: float
) -> tuple[Call, str | None]:
    """The record of a call, and the notice to show if there is nothing to show."""
    try:
        call = read_call(written, tools, tokens.protocol)
    except CallFault as fault:
        bare = isinstance(fault, UnreadableCall)
        record = _faulty(written, tools, tokens.protocol, str(fault))
        return record, str(fault) if bare else tokens.protocol.failed(str(fault))
    record = Call(call.text, tool=call.tool.name, searched=call.tool.searches)
    started = time.perf_counter()
    try:
        result = await call.tool(call.arguments, seconds)
    except ToolError as error:
        record.seconds, record.error = time.perf_counter() - started, str(error)
        notice = NOTICE_FAILED if call.tool.name == SEARCH else f"The call failed: {record.error}"
        return record, tokens.protocol.failed(notice)
    record.seconds = time.perf_counter() - started
    record.passages, record.text = list(result.passages), result.text
    return record, None if result != ToolResult() else tokens.protocol.no_results


def _faulty(written: Written, tools: Sequence[Tool], protocol: Protocol, error: str) -> Call:
    """The record of a call that could not be carried out, of the tool that its tag names."""
    tag = written[0] if written else protocol.search
    named = [] if protocol.calls == "json" else [tool for tool in tools if protocol.tag_of(tool.name) == tag]
    record = Call(None, error=error, tool="", searched=False)
    return replace(record, tool=named[0].name, searched=named[0].searches) if named else record


def _results(
    written: Sequence[Written],
    answers: Sequence[tuple[Call, str | None]],
    room: int,
    tokens: TokenProtocol,
    limits: Limits,
) -> ResultBlock | None:
    """The block of all results of a turn, each with an equal share of the room; None if one does not fit."""
    whole = limits.block_tokens is not None and limits.block_tokens <= room  # cut as a whole, below
    share = sys.maxsize if whole else (room - tokens.turn_frame) // len(answers)
    blocks = []
    for text, (record, notice) in zip(written, answers, strict=True):
        block = _result(text[1] if text else "", record, notice, share, tokens, limits)
        if block is None:
            return None
        record.shown = block.shown
        blocks.append(block)
    return tokens.turn_block(blocks, limits.block_tokens)


def _result(
    call: str, record: Call, notice: str | None, room: int, tokens: TokenProtocol, limits: Limits
) -> ResultBlock | None:
    if notice is not None:
        return tokens.notice_block(notice, room, call)
    if record.passages:
        return tokens.result_block(record.passages, room, limits.passage_tokens, call)
    return tokens.text_block(record.text, room, limits.passage_tokens, call)
