"""A demonstrator: plays the hops of a question as the policy of an episode, in any protocol.

It takes the model's place in the episode loop itself, so that prompt, turns and results are token for token
what a rollout has, and what it is shown is what the retriever really finds.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from research.datasets.questions import Question
from research.environments import BaseEnvironment
from research.episode.loop import Generation, run_episode
from research.episode.prompts import build_prompt
from research.episode.protocol import Protocol, answer_of, closing, format_fault, opening
from research.episode.tokens import TokenProtocol
from research.episode.tools import Tool, ToolError, ToolResult
from research.episode.trajectory import Trajectory
from research.errors import DataError
from research.metrics.answers import exact_match
from research.training.cold_start.hops import Hop, comparison_of

NO_HOPS, NOT_FOUND = "without a decomposition", "with a passage that no search finds"
CUT = "too long for data.max_response_length or research.limits"
SEARCHED_OUT = "with more searches than research.limits.searches"
WRONG = "whose answer is not right or not in a valid form"


class Lost(Exception):
    """A question that cannot be demonstrated; the text, one of those above, says of what kind it is."""


@dataclass
class Demonstrator:
    """Decides from the context what to say next; one object per episode."""

    question: Question
    hops: Sequence[Hop]
    tokens: TokenProtocol
    tool: Tool
    place: int = 0
    tried: int = 0
    heard: int = -1

    async def __call__(self, context: list[int], most: int) -> Generation:
        """See ``Generate``. Raises Lost."""
        shown = self.protocol.opening if self.heard < 0 else self.tokens.decode(context[self.heard :])
        text = self._next_turn(shown)
        if self.protocol.opening and shown.endswith(self.protocol.opening):
            text = text.removeprefix(self.protocol.opening)
        elif shown and not shown.endswith("\n"):
            text = f"\n{text}"
        said = self.tokens.encode(text) + self._end()
        self.heard = len(context) + len(said)
        return Generation(said, [0.0] * len(said))

    def _next_turn(self, shown: str) -> str:
        if self.heard < 0:
            return self._search("")
        if self.place == len(self.hops):
            raise Lost(CUT)
        if not self.hops[self.place].is_in(shown):
            self.tried += 1
            if self.tried == len(self.hops[self.place].queries):
                raise Lost(NOT_FOUND)
            return self._search("It is not there. ")
        found = self.hops[self.place]
        self.place, self.tried = self.place + 1, 0
        if self.place < len(self.hops):
            return self._search("" if found.by_title else f"The passages say {found.answer}. ")
        return _turn(self._conclusion(), _said(self.answer, self.protocol), self.protocol)

    def _conclusion(self) -> str:
        """Repeats the question, because a small model does not look that far back for it."""
        facts = "; ".join(hop.fact for hop in self.hops if hop.fact)
        if not facts:
            return f"The answer is {self.answer}."
        compared, follows = comparison_of(self.question)
        asked = f"Asked is: {self.question.question}"
        said = (f"I know: {facts}.", compared, asked, follows, f"So the answer is {self.answer}.")
        return " ".join(filter(None, said))

    @property
    def answer(self) -> str:
        return self.question.golden_answers[0]

    @property
    def protocol(self) -> Protocol:
        return self.tokens.protocol

    def _search(self, before: str) -> str:
        hop = self.hops[self.place]
        call = _called(hop.queries[self.tried], self.tool, self.protocol)
        return _turn(f"{before}I need to find: {hop.wanted}", call, self.protocol)

    def _end(self) -> list[int]:
        """The end token, where the model itself ends its turns."""
        answered = self.place == len(self.hops)
        ends = {"end": True, "call": answered}.get(self.protocol.stop, False)
        return [int(self.tokens.tokenizer.eos_token_id)] * ends


def _turn(thought: str, act: str, protocol: Protocol) -> str:
    return f"{opening(protocol.think)} {thought} {closing(protocol.think)}\n{act}"


def _called(query: str, tool: Tool, protocol: Protocol) -> str:
    """A search as the protocol has it."""
    tag = protocol.tag_of(tool.name)
    if protocol.calls == "json":
        arguments = {next(iter(tool.arguments.model_fields)): query}
        call = json.dumps({"name": tool.name, "arguments": arguments}, ensure_ascii=False)
        return f"{opening(protocol.search)}\n{call}\n{closing(protocol.search)}"
    return f"{opening(tag)} {query} {closing(tag)}"


def _said(answer: str, protocol: Protocol) -> str:
    content = f"The answer is \\boxed{{{answer}}}." if protocol.boxed else answer
    if protocol.answer_rule == "last_text":
        return content
    return f"{opening(protocol.answer)} {content} {closing(protocol.answer)}"


def _strict(search: Tool) -> Tool:
    """The tool, but a call that fails is an error of ours."""

    async def function(**arguments: Any) -> ToolResult:
        try:
            return await search(arguments)
        except ToolError as error:
            query = next(iter(arguments.values()))
            raise DataError(f"the search for {query!r} failed: {error}") from error

    return replace(search, function=function, guarded=False)


async def demonstrate(
    question: Question, hops: Sequence[Hop], environment: BaseEnvironment, search: Tool, tokens: TokenProtocol
) -> Trajectory:
    """The episode of a question.

    Raises:
        Lost: it has no hops, one of them is not found, a limit cuts it off, or its answer is not right.
        DataError: a search fails; the first one ends it, because the next would wait as long.
    """
    if not hops:
        raise Lost(NO_HOPS)
    demonstrator = Demonstrator(question, hops, tokens, search)
    prompt = build_prompt(environment.settings.prompt, question.question, tokens)
    limits = environment.settings.limits
    trajectory = await run_episode(prompt, demonstrator, [_strict(search)], tokens, limits)
    if trajectory.finish_reason in (cuts := {"length": CUT, "search_limit": SEARCHED_OUT}):
        raise Lost(cuts[trajectory.finish_reason])
    answer = answer_of(trajectory, tokens.protocol) or ""
    right = exact_match(answer, question.golden_answers) == 1
    valid = tokens.protocol.answer_rule == "last_text" or not format_fault(
        trajectory.model_turns, tokens.protocol
    )
    if not (right and valid):
        raise Lost(WRONG)
    return trajectory
