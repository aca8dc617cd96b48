"""Episodes of a query reasoner: the row of a rewriting task in, a scored trajectory out."""

from typing import Any

from research.datasets.rewriting_tasks import RewritingTask
from research.episode.loop import Generate
from research.episode.prompts import asks_for_boxed, build_prompt
from research.episode.rewriting import rewritten_query, run_rewriting
from research.episode.tokens import TokenProtocol
from research.episode.trajectory import Trajectory
from research.rewards.rewriting import RewritingConfig, Tools, reward_weights
from research.rewards.rewriting.score import TextScorer
from research.tools.search import RetrieverClient
from research.training.config import ResearchConfig


class Rewriting:
    """Plays the rows that research/training/rows.py makes of rewriting tasks. One object serves all episodes
    of a process.
    """

    def __init__(self, config: ResearchConfig, rewriting: RewritingConfig, tokens: TokenProtocol) -> None:
        self.config, self.tokens, self.think = config, tokens, rewriting.think
        tools = Tools(rewriting, RetrieverClient(config.retriever))
        self.scorer = TextScorer(reward_weights(config.reward), tools)

    async def play(self, row: dict[str, Any], generate: Generate) -> Trajectory:
        """The episode of a row, with its reward, metrics, and what its metadata has of its own."""
        task = task_of(row["extra_info"])
        prompt_ids = build_prompt(self.config.prompt, task.question, self.tokens)
        trajectory = await run_rewriting(prompt_ids, generate, self.tokens, self.config.limits)
        text = rewritten_query(trajectory, self.tokens, self.think, asks_for_boxed(self.config.prompt))
        score = await self.scorer.score(task, text, trajectory.response_length)
        trajectory.reward, trajectory.reward_reason = score.reward.score, score.reward.reason
        trajectory.metrics = {
            **score.metrics,
            "response_tokens": float(trajectory.response_length),
            "cut_by_length": float(trajectory.finish_reason == "length"),
        }
        trajectory.metadata = {
            "text": text,
            "gold_ids": list(task.gold_ids),
            "found_ids": list(score.found),
            "original_found_ids": list(score.original_found),
        }
        return trajectory


def task_of(info: dict[str, Any]) -> RewritingTask:
    """The task that a row was made of."""
    names = ("positives", "gold_ids", "excluded_ids")
    positives, gold, excluded = (tuple(map(str, info[name])) for name in names)
    return RewritingTask(info["id"], info["question"], positives, gold, excluded)
