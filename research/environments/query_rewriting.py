"""Query rewriting (TongSearch-QR, RQR): write a text that a retriever finds the evidence with."""

from functools import cached_property
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from research.datasets.rewriting_tasks import LISTS, TASK_SCHEMA, RewritingTask, read_tasks, task_rows
from research.environments import BaseEnvironment, EpisodeSettings, Row
from research.environments.headline import LENGTHS, REWARD, Chart, Column, Headline
from research.episode.loop import Generate
from research.episode.prompts import asks_for_boxed, build_prompt
from research.episode.rewriting import rewritten_query, run_rewriting
from research.episode.tokens import TokenProtocol
from research.episode.trajectory import Trajectory
from research.errors import DataError
from research.rewards.rewriting import RewritingConfig, Tools, reward_weights
from research.rewards.rewriting.score import TextScorer
from research.tools.search import RetrieverClient

HEADLINE = Headline(
    metric="ndcg_at_10",
    label="nDCG@10",
    title="nDCG@10 on held-out questions, by source",
    note="nDCG@10 of the rewritten texts with the 95% interval of the mean, beside that of the questions as "
    "they stand. Recall@10 and tokens are means, before -> after.",
    step_line=(
        ("nDCG@10", "search/ndcg_at_10", ".3f"),
        ("question", "search/original_ndcg", ".3f"),
        ("reward", REWARD, ".3f"),
        ("len", "search/response_tokens", ".0f"),
    ),
    training_chart=Chart(
        "Training questions",
        {"search/ndcg_at_10": "nDCG@10", "search/original_ndcg": "of the questions", REWARD: "reward"},
    ),
    charts=(
        Chart("Response length, tokens", LENGTHS),
        Chart("Recall@10", {"search/recall_at_10": "recall@10"}, share=True),
        Chart(
            "Texts that were cut, empty, or not scored",
            {"search/cut_by_length": "cut", "search/empty": "empty", "search/scoring_failed": "not scored"},
            share=True,
        ),
    ),
    columns=(Column("recall@10", "recall_at_10"), Column("tokens", "response_tokens", 1)),
    better=("gain", 0.0),
    verdicts=("better than the question", "no better"),
    share=False,
    baseline="original_ndcg",
    failure=("scoring_failed", "texts of these episodes could not be scored"),
)


class Environment(BaseEnvironment):
    """Plays the rows of rewriting tasks (research/datasets/rewriting_tasks.py)."""

    headline: ClassVar[Headline] = HEADLINE
    schema: ClassVar[pa.Schema] = TASK_SCHEMA
    section: ClassVar[str] = "rewriting"

    def __init__(self, settings: EpisodeSettings) -> None:
        super().__init__(settings)
        try:
            self.config = RewritingConfig(**settings.parameters)
        except TypeError as error:
            raise ValueError(f"research.rewriting: {str(error).replace('.__init__()', '')}") from error
        self.weights = reward_weights(settings.reward)
        if settings.controls or self.tools:
            raise ValueError(
                "query rewriting makes no searches: research.controls and research.tools must be []"
            )

    @cached_property
    def scorer(self) -> TextScorer:
        """Made with the first episode: it may load an encoder."""
        return TextScorer(self.weights, Tools(self.config, RetrieverClient(self.settings.retriever)))

    def read(self, path: Path, split: str, final: bool = True) -> list[RewritingTask]:
        """See BaseEnvironment. Each task must have gold passages, or positives to make them of.

        Every run is measured by gold passages; the reward embedding_gain needs positives.
        """
        tasks = read_tasks(path)
        needed = {"gold_ids": "to be measured by"} if final else {"positives": "to make a corpus of"}
        if "embedding_gain" in self.weights:
            needed["positives"] = "which the reward embedding_gain needs"
        for name, why in needed.items():
            for task in tasks:
                if not getattr(task, name):
                    raise DataError(f'{path}: task {task.id} has no "{name}", {why}')
        return tasks

    def rows(self, splits: dict[str, list[RewritingTask]], seed: int, path: Path) -> dict[str, list[Row]]:
        """See BaseEnvironment."""
        return {split: task_rows(tasks, split) for split, tasks in splits.items()}

    async def play(self, row: Row, generate: Generate, tokens: TokenProtocol) -> Trajectory:
        """See BaseEnvironment."""
        task, prompt = task_of(row["extra_info"]), self.settings.prompt
        prompt_ids = build_prompt(prompt, task.question, tokens)
        trajectory = await run_rewriting(prompt_ids, generate, tokens, self.settings.limits)
        text = rewritten_query(trajectory, tokens, self.config.think, asks_for_boxed(prompt))
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


def task_of(info: Row) -> RewritingTask:
    """The task that a row was made of."""
    return RewritingTask(**{name: info[name] for name in ("id", "question", *LISTS)})
