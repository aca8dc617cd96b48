"""The default reward: 1 if the answer equals a golden one after SQuAD normalisation, else 0. No shaping."""

from research.episode.protocol import answer_of
from research.episode.trajectory import Trajectory
from research.metrics import answers as metrics
from research.rewards import Reference, Reward, no_answer


def score(trajectory: Trajectory, reference: Reference) -> Reward:
    """Exact match of the extracted answer, 0.0 or 1.0."""
    answer = answer_of(trajectory, reference.protocol)
    if not answer:
        return no_answer(trajectory, reference.protocol)
    right = metrics.exact_match(answer, reference.golden_answers)
    return Reward(right, "right answer" if right else "wrong answer")
