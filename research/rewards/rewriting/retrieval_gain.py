"""The text's gain on the index itself: nDCG@k or recall@k of its ranking, minus the question's.

From -1 to 1. Metric and k are configuration; passages that the task excludes are not in the ranking.
"""

from research.datasets.rewriting_tasks import RewritingTask
from research.metrics.ranking import MEASURES
from research.rewards import Reward
from research.rewards.rewriting import Tools


class TextReward:
    """Searches with each text; with each question once."""

    def __init__(self, tools: Tools) -> None:
        self.tools = tools

    async def __call__(self, task: RewritingTask, text: str) -> Reward:
        """Raises ScoringError."""
        config = self.tools.config
        original = await self.tools.ranked_original(task, config.k)
        found = await self.tools.ranked(task, text, config.k)
        before, after = (MEASURES[config.metric](ids, task.gold_ids, config.k) for ids in (original, found))
        return Reward(after - before, f"{config.metric}@{config.k} {before:.2f} -> {after:.2f}")
