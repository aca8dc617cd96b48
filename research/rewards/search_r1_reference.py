"""Search-R1's reward to the letter (PeterGriffinJin/Search-R1, qa_em_format.py); our own form is em_format.

It reads the whole response, results and notices too. The reference reads its prompt as well: where the model
gave no answer, the example in the prompt counts as one, a wrong one that still earns ``final_format``.
v0.1 and v0.2 are ``structure: 0, final_format: 0``. For protocol search_r1.
"""

import re

from research.episode.protocol import Protocol
from research.episode.trajectory import Trajectory
from research.metrics.answers import exact_match, normalize_answer
from research.rewards import Reference, Reward


def score(
    trajectory: Trajectory,
    reference: Reference,
    structure: float = 0.2,
    final_format: float = 0.1,
    retrieval: float = 0.0,
    prompt_answer: str = "Beijing",
) -> Reward:
    """Right: 1.0 in a valid format, else less `structure`.

    Wrong: `structure`, and `retrieval` if a result holds the answer, in a valid format, else `final_format`.
    """
    protocol, text = reference.protocol, trajectory.text
    valid = is_valid(text, protocol)
    answers = re.findall(rf"<{protocol.answer}>(.*?)</{protocol.answer}>", text, re.DOTALL)
    answer = answers[-1].strip() if answers else prompt_answer
    if exact_match(answer, reference.golden_answers):
        return Reward(1.0 if valid else 1.0 - structure, f"right, format valid: {valid}")
    if not valid:
        return Reward(final_format, "wrong, format invalid")
    held = retrieval if _is_held(text, reference) else 0.0
    return Reward(structure + held, "wrong, format valid")


def is_valid(text: str, protocol: Protocol) -> bool:
    """Whether it is thought, search and result, any number of times, then thought and answer.

    Between them there may be blanks alone.
    """
    names = protocol.think, protocol.search, protocol.result, protocol.answer
    tag = "|".join(map(re.escape, names))
    think, search, result, answer = (
        rf"<{name}>(?:(?!</?(?:{tag})>).)*+</{name}>\s*" for name in map(re.escape, names)
    )
    return re.fullmatch(rf"\s*(?:{think}{search}{result})*{think}{answer}", text, re.DOTALL) is not None


def _is_held(text: str, reference: Reference) -> bool:
    name = re.escape(reference.protocol.result)
    results = [normalize_answer(each) for each in re.findall(rf"<{name}>(.*?)</{name}>", text, re.DOTALL)]
    return any(normalize_answer(golden) in each for each in results for golden in reference.golden_answers)
