"""The default reward: 1 if the answer equals a golden one after SQuAD normalisation, else 0. No shaping."""

from research.episode.protocol import answer_of
from research.episode.trajectory import Trajectory
from research.metrics import answers as metrics
from research.rewards import Reference, Reward, ended


def score(trajectory: Trajectory, reference: Reference) -> Reward:
    """Exact match of the extracted answer, 0.0 or 1.0."""
    answer = answer_of(trajectory, reference.protocol)
    if not answer:
        cause = "" if ended(trajectory) else f": ended by {trajectory.finish_reason}"
        return Reward(0.0, f"no answer{cause}")
    right = metrics.exact_match(answer, reference.golden_answers)
    return Reward(right, "right answer" if right else "wrong answer")
