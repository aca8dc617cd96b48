"""What one finished question is worth: its metrics, from the trajectory alone."""

from research.episode.protocol import Protocol, format_fault
from research.episode.trajectory import Trajectory
from research.metrics.answers import score_answer, support_recall
from research.rewards import ended

# In the order of tables; all are means over questions.
SHARES = (
    "em",
    "f1",
    "acc",
    "judge",
    "judge_failed",
    "support_recall",
    "format_valid",
    "failed",
    "cut_by_length",
)
METRICS = (*SHARES[:-1], "searches", "failed_searches", "model_tokens", "response_tokens", "cut_by_length")


def score(trajectory: Trajectory, protocol: Protocol) -> None:
    """Set the metrics of a trajectory from its metadata: prediction, golden_answers, supporting_ids, _titles.

    `support_recall` needs labelled gold passages, `format_valid` a method that has a format. A failed
    question has no answer, whatever its prediction.
    """
    data = trajectory.metadata
    failed = "error" in data
    answer = score_answer("" if failed else data["prediction"], data["golden_answers"])
    trajectory.metrics = {
        **answer._asdict(),
        "searches": float(len(trajectory.searches)),
        "failed_searches": float(sum(search.error is not None for search in trajectory.searches)),
        "model_tokens": float(sum(trajectory.response_mask)),
        "response_tokens": float(trajectory.response_length),
        "cut_by_length": float(trajectory.finish_reason == "length"),
        "failed": float(failed),
    }
    passages = [passage for search in trajectory.searches for passage in search.passages]
    recall = support_recall(passages, data["supporting_ids"], data["supporting_titles"])
    if recall is not None:
        trajectory.metrics["support_recall"] = recall
    if data["method"] == "research":
        valid = ended(trajectory) and format_fault(trajectory.model_turns, protocol) is None
        trajectory.metrics["format_valid"] = float(valid)
