"""The default reward: 1 if the answer equals a golden one after SQuAD normalisation, else 0. No shaping."""

from research.episode.protocol import Protocol, answer_of, format_fault
from research.episode.trajectory import Trajectory
from research.metrics import answers as metrics
from research.rewards import Reference, Reward, ended


def score(trajectory: Trajectory, reference: Reference) -> Reward:
    """Exact match of the extracted answer, 0.0 or 1.0."""
    answer = answer_of(trajectory, reference.protocol)
    if not answer:
        return Reward(0.0, f"no answer{_cause(trajectory, reference.protocol)}")
    right = metrics.exact_match(answer, reference.golden_answers)
    return Reward(right, "right answer" if right else "wrong answer")


def _cause(trajectory: Trajectory, protocol: Protocol) -> str:
    """What cut the episode off, or what its answer lacks."""
    if not ended(trajectory):
        return f": ended by {trajectory.finish_reason}"
    fault = format_fault(trajectory.model_turns, protocol) if protocol.boxed else None
    return f": {fault}" if fault else ""
