"""Episodes of a search agent: a question row in, a scored trajectory out."""

import json
from typing import Any

from research.environments.controls import controlled
from research.episode.loop import Generate, run_episode
from research.episode.prompts import build_prompt
from research.episode.protocol import Protocol, extract_answer, format_fault
from research.episode.tokens import TokenProtocol
from research.episode.trajectory import Trajectory
from research.metrics import answers as metrics
from research.rewards import AnswerReward, Reference, ended
from research.tools.search import RetrieverClient
from research.training.config import ResearchConfig


class Answering:
    """Plays the rows that datasets/questions.py writes. One object serves all episodes of a process."""

    def __init__(self, config: ResearchConfig, tokens: TokenProtocol) -> None:
        self.config, self.tokens = config, tokens
        self.search = RetrieverClient(config.retriever)
        self.reward = AnswerReward(config.reward)

    async def play(self, row: dict[str, Any], generate: Generate) -> Trajectory:
        """The episode of a row, with its reward, metrics, and what its metadata has of its own."""
        info = row["extra_info"]
        prompt_ids = build_prompt(self.config.prompt, info["question"], self.tokens)
        search = controlled(self.search, info["control"], list(info["decoys"]))
        trajectory = await run_episode(prompt_ids, generate, search, self.tokens, self.config.limits)
        reference = _reference(row, self.config.protocol)
        reward = await self.reward(trajectory, reference)
        trajectory.reward, trajectory.reward_reason = reward.score, reward.reason
        trajectory.metrics = _metrics(trajectory, reference)
        trajectory.metrics |= {f"reward/{name}": value for name, value in reward.metrics.items()}
        trajectory.metadata = {
            "golden_answers": list(reference.golden_answers),
            "supporting_ids": [str(each) for each in info["supporting_ids"]],
        }
        return trajectory


def _reference(row: dict[str, Any], protocol: Protocol) -> Reference:
    info, golden_answers = row["extra_info"], row["reward_model"]["ground_truth"]["target"]
    metadata = json.loads(info.get("metadata") or "{}")  # rows of an older run have none
    return Reference(info["question"], tuple(map(str, golden_answers)), protocol, metadata)


def _metrics(trajectory: Trajectory, reference: Reference) -> dict[str, float]:
    """What is measured of each finished trajectory, whatever its reward."""
    protocol, golden_answers = reference.protocol, reference.golden_answers
    answer = extract_answer(trajectory.model_turns, protocol) or ""
    valid = ended(trajectory) and format_fault(trajectory.model_turns, protocol) is None
    failed = sum(search.error is not None for search in trajectory.searches if search.query)
    return {
        "em": metrics.exact_match(answer, golden_answers),
        "f1": metrics.token_f1(answer, golden_answers),
        "format_valid": float(valid),
        "searches": float(len(trajectory.searches)),
        "failed_searches": float(failed),
        "response_tokens": float(trajectory.response_length),
        "cut_by_length": float(trajectory.finish_reason == "length"),
    }
