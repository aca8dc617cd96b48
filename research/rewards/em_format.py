"""The Search-R1 family's reward: exact match with a smaller part for a valid format (Search-R1,
qa_em_format).

Right: 1.0 in a valid format, 0.8 otherwise. Wrong: 0.2 in a valid format, 0.1 otherwise; 0.0 without any
answer, of which empty answer tags are none.
"""

from research.episode.protocol import extract_answer, format_fault
from research.episode.trajectory import Trajectory
from research.metrics import answers as metrics
from research.rewards import Reference, Reward, ended


def score(trajectory: Trajectory, reference: Reference) -> Reward:
    """One of 1.0, 0.8, 0.2, 0.1, 0.0."""
    answer = extract_answer(trajectory.model_turns, reference.protocol)
    if not answer:
        return Reward(0.0, "no answer")
    fault = format_fault(trajectory.model_turns, reference.protocol) if ended(trajectory) else "not finished"
    if metrics.exact_match(answer, reference.golden_answers):
        return (
            Reward(0.8, f"right answer, format: {fault}")
            if fault
            else Reward(1.0, "right answer, valid format")
        )
    return (
        Reward(0.1, f"wrong answer, format: {fault}") if fault else Reward(0.2, "wrong answer, valid format")
    )
