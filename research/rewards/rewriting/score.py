"""The whole score of a rewritten query: rewards by weight, terms for length and empty texts, and measures."""

from collections.abc import Mapping
from dataclasses import dataclass

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
        """The score of a text from a response of so many tokens.

        If the retriever or the encoder fails, it is 0, as if nothing was gained or lost, and
        ``scoring_failed`` is 1.
        """
        try:
            original = await self.tools.ranked_original(task, DEPTH)
            found = await self.tools.ranked(task, text, DEPTH) if text else []
            reward = await self._reward(task, text, tokens)
        except ScoringError as error:
            metrics = _metrics(task, [], []) | {"scoring_failed": 1.0}
            return Score(Reward(0.0, f"not scored: {error}"), metrics)
        metrics = _metrics(task, found, original) | {"empty": float(not text)}
        return Score(reward, metrics, tuple(found), tuple(original))

    async def _reward(self, task: RewritingTask, text: str, tokens: int) -> Reward:
        config = self.tools.config
        total, reasons = (0.0, []) if text else (-config.empty_penalty, ["empty text"])
        for name, (weight, reward) in self._rewards.items() if text else ():
            part = await reward(task, text)
            total += weight * part.score
            reasons.append(f"{name} {part.score:+.3f} ({part.reason})")
        over = tokens - config.free_tokens
        if over > 0 and config.length_penalty:
            taken = config.length_penalty * over
            total -= taken
            reasons.append(f"{over} tokens too long: {-taken:.3f}")
        return Reward(total, "; ".join(reasons))


def _metrics(task: RewritingTask, found: list[str], original: list[str]) -> dict[str, float]:
    value, before = ndcg(found, task.gold_ids, DEPTH), ndcg(original, task.gold_ids, DEPTH)
    return {
        "ndcg_at_10": value,
        "recall_at_10": recall(found, task.gold_ids, DEPTH),
        "original_ndcg": before,
        "gain": value - before,
        "empty": 0.0,
        "scoring_failed": 0.0,
    }
