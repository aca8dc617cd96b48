"""What one finished question is worth: its metrics, from the trajectory alone."""

from research.episode.trajectory import Trajectory
from research.metrics.answers import score_answer, support_recall

COUNTS = ("searches", "asked_searches", "failed_searches", "model_tokens", "response_tokens")
# In the order of the tables, followed by an environment's own; all are means over questions.
SHARES = ("em", "f1", "acc", "judge", "judge_failed", "support_recall", "format_valid", "failed")
METRICS = (*SHARES, *COUNTS, "cut_by_length")


def set_metrics(trajectory: Trajectory) -> None:
    """Set the metrics of a trajectory from its metadata: prediction, golden_answers, supporting_ids, _titles.

    What the environment measured in an episode stays, except for the counts that all methods have.
    `support_recall` needs labelled gold passages. A failed question has no answer, whatever its prediction.
    """
    data, measured = trajectory.metadata, trajectory.metrics
    failed = "error" in data
    answer = score_answer("" if failed else data["prediction"], data["golden_answers"])
    asked = trajectory.asked_searches
    counts = {
        "searches": float(len(trajectory.searches)),
        "asked_searches": float(len(asked)),
        "failed_searches": float(sum(search.error is not None for search in asked)),
        "model_tokens": float(sum(trajectory.response_mask)),
        "response_tokens": float(trajectory.response_length),
        "cut_by_length": float(trajectory.finish_reason == "length"),
        "failed": float(failed),
    }
    passages = [passage for search in trajectory.searches for passage in search.passages]
    recall = support_recall(passages, data["supporting_ids"], data["supporting_titles"])
    optional = {} if recall is None else {"support_recall": recall}
    if data["method"] == "research":
        optional["format_valid"] = 0.0  # of an episode that failed
    measured = {name: value for name, value in measured.items() if name not in counts}
    trajectory.metrics = {**answer._asdict(), **counts, **optional, **measured}
