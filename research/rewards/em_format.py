"""Search-R1's reward qa_em_format: exact match, with a smaller part for a valid format.

Right: 1.0 in a valid format, 0.8 otherwise. Wrong: 0.2 in a valid format, 0.1 otherwise; 0.0 without an
answer; empty answer tags count as none.
"""

from research.episode.protocol import answer_of, format_fault
from research.episode.trajectory import Trajectory
from research.metrics import answers as metrics
from research.rewards import Reference, Reward, ended, no_answer

SCORES = {(True, True): 1.0, (True, False): 0.8, (False, True): 0.2, (False, False): 0.1}
"""(right, valid format) -> the reward of an answer."""


def score(trajectory: Trajectory, reference: Reference) -> Reward:
    """One of these, or 0.0."""
    answer = answer_of(trajectory, reference.protocol)
    if not answer:
        return no_answer(trajectory, reference.protocol)
    fault = format_fault(trajectory.model_turns, reference.protocol) if ended(trajectory) else "not finished"
    right = metrics.exact_match(answer, reference.golden_answers) == 1
    reason = f"{'right' if right else 'wrong'} answer, {f'format: {fault}' if fault else 'valid format'}"
    return Reward(SCORES[right, fault is None], reason)
