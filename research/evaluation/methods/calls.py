"""What methods work with: tools, and the model calls and searches of a baseline as one trajectory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from research.environments import BaseEnvironment, Row
from research.episode.prompts import build_prompt
from research.episode.tokens import TokenProtocol
from research.episode.tools import SearchError, SearchFunction
from research.episode.trajectory import Call, Passage, Segment, Trajectory
from research.evaluation.config import EvaluationConfig
from research.evaluation.engines import Sample, Stops


@dataclass(frozen=True)
class MethodTools:
    """What a method answers with; `row` is the question as the environment plays it."""

    sample: Sample
    search: SearchFunction
    tokens: TokenProtocol
    config: EvaluationConfig
    environment: BaseEnvironment
    row: Row


class Calls:
    """The trajectory of one question; the first prompt is its prompt, later ones are environment segments."""

    def __init__(self, question: str, tools: MethodTools) -> None:
        self.question, self._tools = question, tools
        self._trajectory = Trajectory(prompt_ids=[])

    async def search(self, query: str) -> list[Passage]:
        """Passages, best first; none if the search failed, which the trajectory records."""
        try:
            passages = await self._tools.search(query)
            record = Call(query, passages, shown=len(passages))
        except SearchError as error:
            record = Call(query, error=str(error))
        self._trajectory.calls.append(record)
        return record.passages

    async def ask(self, prompt: str, stops: Sequence[str] = (), ending: str = "", **fields: str) -> str:
        """The model's reply to a built-in prompt with its `fields` filled in and `ending` appended."""
        tokens, config = self._tools.tokens, self._tools.config
        token_ids = build_prompt(prompt, self.question, tokens, **fields) + tokens.encode(ending)
        ends = Stops(tuple(sorted(tokens.eos_token_ids)), tuple(stops))
        sampled = tokens.until_end(await self._tools.sample(token_ids, config.baselines.answer_tokens, ends))
        self._keep("environment", token_ids)
        self._keep("model", sampled)
        reply = tokens.said(sampled)
        at_end = not tokens.eos_token_ids.isdisjoint(sampled) or any(stop in reply for stop in stops)
        self._trajectory.finish_reason = "eos" if at_end else "length"
        return reply.strip()

    def shown(self, passages: Sequence[Passage]) -> str:
        """Passages as text for a prompt, each cut to the configured length."""
        tokens, config = self._tools.tokens, self._tools.config
        return "\n\n".join(tokens.passage_texts(passages, config.limits.passage_tokens))

    def finish(self, prediction: str) -> Trajectory:
        """The trajectory with its prediction."""
        self._trajectory.metadata["prediction"] = prediction
        return self._trajectory

    def _keep(self, author: Literal["model", "environment"], token_ids: list[int]) -> None:
        if author == "environment" and not self._trajectory.prompt_ids:
            self._trajectory.prompt_ids = token_ids
            return
        tokens = self._tools.tokens
        text = (tokens.said if author == "model" else tokens.decode)(token_ids)
        self._trajectory.segments.append(Segment(author, token_ids, [0.0] * len(token_ids), text))
