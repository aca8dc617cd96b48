"""ReSearch's reward to the letter (Agent-RL/ReSearch, reward_score/re_search.py); our own form is f1_format.

It reads the whole response, results too, gives a wrong answer more than an F1 below 0.1, and nothing to a
response that the model did not end itself. For protocol research_reference.
"""

from dataclasses import replace

from research.episode.protocol import closing, extract_answer, opening
from research.episode.trajectory import Trajectory
from research.metrics.answers import token_f1
from research.rewards import Reference, Reward

VALID_FORMAT = 0.1


def score(trajectory: Trajectory, reference: Reference) -> Reward:
    """0.0 for an invalid format or no end; else F1 if it is above 0; else 0.1."""
    protocol, text = replace(reference.protocol, answer_rule="first", unwrap_text=False), trajectory.text
    tags = protocol.think, protocol.search, protocol.result, protocol.answer
    if fault := _format_fault(text, *tags):
        return Reward(0.0, f"format: {fault}")
    if trajectory.finish_reason != "eos":
        return Reward(0.0, f"not ended: {trajectory.finish_reason}")
    answer = extract_answer([text], protocol)
    if answer is None:
        return Reward(0.0, "the box is broken")
    f1 = token_f1(answer, reference.golden_answers)
    return Reward(f1 or VALID_FORMAT, f"valid format, F1 {f1:.2f}")


def _format_fault(text: str, think: str, search: str, result: str, answer: str) -> str | None:
    if not text.count(opening(think)) == text.count(closing(think)) > 0:
        return "think tags missing or unbalanced"
    if not text.count(opening(answer)) == text.count(closing(answer)) == 1:
        return "not exactly one answer"
    if not _searches_have_results(text, (search, result)):
        return "a search without its result"
    inside = text[text.index(opening(answer)) : text.index(closing(answer))]
    return None if "\\boxed{" in inside and "}" in inside else "the answer has no box"


def _searches_have_results(text: str, tags: tuple[str, str]) -> bool:
    """Whether each ``<search>`` is closed before a ``<result>`` that is closed."""
    (search, result), place = tags, 0
    while (start := text.find(opening(search), place)) >= 0:
        end, shown = text.find(closing(search), start), text.find(opening(result), start)
        place = text.find(closing(result), max(shown, 0))
        if not start < end < shown < place:
            return False
    return True
