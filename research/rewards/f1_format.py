"""ReSearch's rule-based reward: 0 for a broken format, else token F1, at least 0.1.

By arXiv 2503.19470, section 2.3. The reference gives an F1 of 0.05 less than a wrong answer's 0.1; here the
floor is a floor, so that a better answer never earns less. And it gives an empty answer the floor; here no
answer earns nothing.
"""

from research.episode.protocol import answer_of, format_fault
from research.episode.trajectory import Trajectory
from research.metrics import answers as metrics
from research.rewards import Reference, Reward, ended

VALID_FORMAT = 0.1


def score(trajectory: Trajectory, reference: Reference) -> Reward:
    """0.0 for an invalid or unfinished response and without an answer; otherwise max(F1, 0.1)."""
    if not ended(trajectory):
        return Reward(0.0, f"not finished: ended by {trajectory.finish_reason}")
    fault = format_fault(trajectory.model_turns, reference.protocol)
    if fault:
        return Reward(0.0, f"format: {fault}")
    answer = answer_of(trajectory, reference.protocol)
    if not answer:
        return Reward(0.0, "no answer")
    f1 = metrics.token_f1(answer, reference.golden_answers)
    return Reward(max(f1, VALID_FORMAT), f"valid format, F1 {f1:.2f}")
