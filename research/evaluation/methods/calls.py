"""What methods use to answer: the model calls and searches of one question as one trajectory."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from research.environments import BaseEnvironment, Row
from research.episode.prompts import build_prompt
from research.episode.tokens import TokenProtocol
from research.episode.tools import SearchError, SearchFunction
from research.episode.trajectory import Call, Passage, Segment, Trajectory
from research.evaluation.config import EvaluationConfig
from research.evaluation.engines import Sample, Stops


@dataclass(frozen=True)
class Calls:
    """One question, also as the `row` that the environment plays, and everything needed to answer it.

    The first prompt is the trajectory's prompt, later ones are environment segments.
    """

    question: str
    row: Row
    sample: Sample
    retrieve: SearchFunction
    tokens: TokenProtocol
    config: EvaluationConfig
    environment: BaseEnvironment
    trajectory: Trajectory = field(default_factory=lambda: Trajectory(prompt_ids=[]))

    async def search(self, query: str) -> list[Passage]:
        """Passages, best first; none if the search failed, which the trajectory records."""
        try:
            passages = await self.retrieve(query)
            record = Call(query, passages, shown=len(passages))
        except SearchError as error:
            record = Call(query, error=str(error))
        self.trajectory.calls.append(record)
        return record.passages

    async def ask(self, prompt: str, stops: Sequence[str] = (), ending: str = "", **fields: str) -> str:
        """The model's reply to a built-in prompt with its `fields` filled in and `ending` appended."""
        tokens = self.tokens
        token_ids = build_prompt(prompt, self.question, tokens, **fields) + tokens.encode(ending)
        ends = Stops(tuple(sorted(tokens.eos_token_ids)), tuple(stops))
        sampled = tokens.until_end(await self.sample(token_ids, self.config.baselines.answer_tokens, ends))
        if self.trajectory.segments:
            self._keep("environment", token_ids, tokens.decode(token_ids))
        else:
            self.trajectory.prompt_ids = token_ids
        reply = tokens.said(sampled)
        self._keep("model", sampled, reply)
        at_end = not tokens.eos_token_ids.isdisjoint(sampled) or any(stop in reply for stop in stops)
        self.trajectory.finish_reason = "eos" if at_end else "length"
        return reply.strip()

    def shown(self, passages: Sequence[Passage]) -> str:
        """Passages as text for a prompt, each cut to the configured length."""
        return "\n\n".join(self.tokens.passage_texts(passages, self.config.limits.passage_tokens))

    def finish(self, prediction: str) -> Trajectory:
        """The trajectory with its prediction."""
        self.trajectory.metadata["prediction"] = prediction
        return self.trajectory

    def _keep(self, author: Literal["model", "environment"], token_ids: list[int], text: str) -> None:
        self.trajectory.segments.append(Segment(author, token_ids, [0.0] * len(token_ids), text))
