"""What a kind of training is told by: its measure, and the words of its lines, table and report."""

from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

from research.training.config import load_config
from research.training.watch.guards import REWARD
from research.training.watch.results import HeldOut, Rewritten


@dataclass(frozen=True)
class Headline:
    """See ANSWERS and REWRITINGS.

    Attributes:
        metric: the measure, among the metrics of a trajectory; ``search/METRIC`` is its mean over a step.
        label: its name for people.
        title: of the chart of held-out questions.
        results: the figures of its table.
        note: what stands under the table.
        step_line: (label, metric of a step, format) of a line of progress.
        training_chart: metrics of a step -> label, drawn together.
        better: (metric, value): an episode is well done where the metric is above the value.
        verdicts: words for an episode that is well done, and for one that is not.
        baseline: metric that the training should leave behind, drawn beside the held-out measure; or empty.
        failures: what failed where the retriever did.
    """

    metric: str
    label: str
    title: str
    results: type[HeldOut] | type[Rewritten]
    note: str
    step_line: tuple[tuple[str, str, str], ...]
    training_chart: dict[str, str]
    better: tuple[str, float]
    verdicts: tuple[str, str]
    baseline: str = ""
    failures: str = "searches of these episodes failed"

    def well_done(self, metrics: dict[str, float]) -> bool:
        """Whether an episode with these metrics is."""
        name, least = self.better
        return metrics[name] > least


ANSWERS = Headline(
    metric="em",
    label="EM",
    title="EM on held-out questions, by hops",
    results=HeldOut,
    note="EM with its 95% interval (Wilson). Searches and valid formats are means, before -> after.",
    step_line=(
        ("EM", "search/em", ".3f"),
        ("reward", REWARD, ".3f"),
        ("searches", "search/searches", ".1f"),
        ("len", "search/response_tokens", ".0f"),
    ),
    training_chart={REWARD: "reward", "search/em": "EM"},
    better=("em", 0.5),
    verdicts=("right", "wrong"),
)
REWRITINGS = Headline(
    metric="ndcg_at_10",
    label="nDCG@10",
    title="nDCG@10 on held-out questions, by source",
    results=Rewritten,
    note="nDCG@10 of the rewritten texts with the 95% interval of the mean, beside that of the questions as "
    "they stand. Recall@10 and tokens are means, before -> after.",
    step_line=(
        ("nDCG@10", "search/ndcg_at_10", ".3f"),
        ("question", "search/original_ndcg", ".3f"),
        ("reward", REWARD, ".3f"),
        ("len", "search/response_tokens", ".0f"),
    ),
    training_chart={
        "search/ndcg_at_10": "nDCG@10",
        "search/original_ndcg": "of the questions",
        REWARD: "reward",
    },
    better=("gain", 0.0),
    verdicts=("better than the question", "no better"),
    baseline="original_ndcg",
    failures="texts of these episodes could not be scored",
)


def headline_of(run_dir: Path) -> Headline:
    """By the configuration of the run; a folder without one is taken for a search agent's."""
    path = run_dir / "config.yaml"
    config = load_config(path) if path.exists() else OmegaConf.create()
    rewriting = OmegaConf.select(config, "research.rewriting")
    return ANSWERS if rewriting is None else REWRITINGS
