"""The whole score of a rewritten query: rewards by weight, the terms for length and empty texts, and what is
measured beside them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from research.datasets.rewriting_tasks import RewritingTask
from research.metrics.ranking import ndcg, recall
from research.rewards import Reward
from research.rewards.rewriting import ScoringError, Tools, make_text_reward

DEPTH = 10  # of the measures that every run reports, whatever it is rewarded by


@dataclass(frozen=True)
class Score:
    """What a text earned and why, its measures, and the ids that it and the question found."""

    reward: Reward
    metrics: dict[str, float]
    found: tuple[str, ...] = ()
    original_found: tuple[str, ...] = ()


class TextScorer:
    """Made once a process; scores any number of texts at the same time."""

    def __init__(self, weights: Mapping[str, float], tools: Tools) -> None:
        """`weights` by name of the reward. Raises EncoderError if a reward's encoder cannot be loaded."""
        self.tools = tools
        self._rewards = {name: (weight, make_text_reward(name, tools)) for name, weight in weights.items()}

    async def score(self, task: RewritingTask, text: str, tokens: int) -> Score:
        """Of a text out of a response of so many tokens. Where retriever or encoder fail the reward is 0, as
        if nothing was gained or lost, with the reason and ``scoring_failed`` 1.
        """
        try:
            measured = await self._measure(task, text)
            reward = await self._reward(task, text) if text else self._empty()
        except ScoringError as error:
            return Score(Reward(0.0, f"not scored: {error}"), _metrics(task, (), (), failed=True))
        return replace(measured, reward=self._with_length(reward, tokens))

    async def _measure(self, task: RewritingTask, text: str) -> Score:
        original = tuple(await self.tools.ranked_original(task, DEPTH))
        found = tuple(await self.tools.ranked(task, text, DEPTH)) if text else ()
        return Score(Reward(0.0, ""), _metrics(task, found, original, empty=not text), found, original)

    async def _reward(self, task: RewritingTask, text: str) -> Reward:
        total, reasons = 0.0, []
        for name, (weight, reward) in self._rewards.items():
            part = await reward(task, text)
            total += weight * part.score
            reasons.append(f"{name} {part.score:+.3f} ({part.reason})")
        return Reward(total, "; ".join(reasons))

    def _empty(self) -> Reward:
        return Reward(-self.tools.config.empty_penalty, "empty text")

    def _with_length(self, reward: Reward, tokens: int) -> Reward:
        config = self.tools.config
        over = tokens - config.free_tokens
        if over <= 0 or not config.length_penalty:
            return reward
        taken = config.length_penalty * over
        return Reward(reward.score - taken, f"{reward.reason}; {over} tokens too long: {-taken:.3f}")


def _metrics(
    task: RewritingTask,
    found: tuple[str, ...],
    original: tuple[str, ...],
    *,
    empty: bool = False,
    failed: bool = False,
) -> dict[str, float]:
    value, before = ndcg(found, task.gold_ids, DEPTH), ndcg(original, task.gold_ids, DEPTH)
    return {
        "ndcg_at_10": value,
        "recall_at_10": recall(found, task.gold_ids, DEPTH),
        "original_ndcg": before,
        "gain": value - before,
        "empty": float(empty),
        "scoring_failed": float(failed),
    }
