"""Episodes of a search agent: a question row in, a scored trajectory out."""

from typing import Any

from research import metrics
from research.controls import controlled
from research.prompts import build_prompt
from research.protocol import extract_answer, format_fault
from research.retriever_client import RetrieverClient
from research.rewards import ended, get_reward
from research.search_loop import Generate, run_episode
from research.token_protocol import TokenProtocol
from research.training.config import ResearchConfig
from research.trajectory import Trajectory


class Answering:
    """Plays the rows that data/questions.py writes. One object serves all episodes of a process."""

    def __init__(self, config: ResearchConfig, tokens: TokenProtocol) -> None:
        self.config, self.tokens = config, tokens
        self.search = RetrieverClient(config.retriever)
        self.reward = get_reward(str(config.reward))

    async def play(self, row: dict[str, Any], generate: Generate) -> Trajectory:
        """The episode of a row, with its reward, metrics, and what its metadata has of its own."""
        info = row["extra_info"]
        prompt_ids = build_prompt(self.config.prompt, info["question"], self.tokens)
        search = controlled(self.search, info["control"], list(info["decoys"]))
        trajectory = await run_episode(prompt_ids, generate, search, self.tokens, self.config.limits)
        golden_answers = [str(answer) for answer in row["reward_model"]["ground_truth"]["target"]]
        self._score(trajectory, golden_answers)
        trajectory.metadata = {
            "golden_answers": golden_answers,
            "supporting_ids": [str(each) for each in info["supporting_ids"]],
        }
        return trajectory

    def _score(self, trajectory: Trajectory, golden_answers: list[str]) -> None:
        """Set the reward, its reason and the metrics of a finished trajectory."""
        protocol = self.config.protocol
        reward = self.reward(trajectory, golden_answers, protocol)
        trajectory.reward, trajectory.reward_reason = reward.score, reward.reason
        answer = extract_answer(trajectory.model_turns, protocol)
        valid = ended(trajectory) and format_fault(trajectory.model_turns, protocol) is None
        trajectory.metrics = {
            "em": metrics.exact_match(answer or "", golden_answers),
            "f1": metrics.token_f1(answer or "", golden_answers),
            "format_valid": float(valid),
            "searches": float(len(trajectory.searches)),
            "failed_searches": float(
                sum(search.error is not None for search in trajectory.searches if search.query)
            ),
            "response_tokens": float(trajectory.response_length),
            "cut_by_length": float(trajectory.finish_reason == "length"),
        }
