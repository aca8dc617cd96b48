"""ReCall's reward to the letter (Agent-RL/ReCall, reward_score/re_call.py). For protocol recall.

It reads the whole response, results too, takes the last box of the last turn, thoughts included, gives a
wrong answer more than an F1 below 0.1, and nothing to a response that the model did not end itself.
"""

import json
import re

from research.episode.protocol import Protocol, closing, opening, plain_box
from research.episode.trajectory import Trajectory
from research.metrics.answers import token_f1
from research.rewards import Reference, Reward

VALID_FORMAT = 0.1
BEGIN, END = "<|im_start|>assistant\n", "<|im_end|>"  # of a turn in Qwen's chat template


def score(trajectory: Trajectory, reference: Reference) -> Reward:
    """0.0 for an invalid format, no end or no box; else F1 if it is above 0; else 0.1."""
    if trajectory.finish_reason != "eos":
        return Reward(0.0, f"not ended: {trajectory.finish_reason}")
    turns = _turns(trajectory, reference.protocol)
    if fault := next(filter(None, (_fault(turn, reference.protocol) for turn in turns)), ""):
        return Reward(0.0, f"format: {fault}")
    answer = plain_box(turns[-1])
    if answer is None:
        return Reward(0.0, "no box, or a broken one, in the last turn")
    f1 = token_f1(answer, reference.golden_answers)
    return Reward(f1 or VALID_FORMAT, f"valid format, F1 {f1:.2f}")


def _turns(trajectory: Trajectory, protocol: Protocol) -> list[str]:
    """The model's turns as found in the whole text: a turn written in a passage would count, too."""
    texts = [each.text + END * (each.author == "model") for each in trajectory.segments]
    text = BEGIN + protocol.opening + "".join(texts)
    return [turn.strip() for turn in re.findall(f"{re.escape(BEGIN)}(.*?){re.escape(END)}", text, re.DOTALL)]


def _fault(turn: str, protocol: Protocol) -> str:
    if not turn.count(opening(protocol.think)) == turn.count(closing(protocol.think)) > 0:
        return "think tags missing or unbalanced"
    opened, closed = opening(protocol.search), closing(protocol.search)
    if turn.count(opened) != turn.count(closed):
        return "call tags unbalanced"
    calls = re.findall(f"{re.escape(opened)}(.*?){re.escape(closed)}", turn, re.DOTALL)
    return "" if all(map(_is_call, calls)) else "a call is no JSON with name and arguments"


def _is_call(text: str) -> bool:
    try:
        json.loads(text.strip())
    except (ValueError, RecursionError):
        return False
    return '"name"' in text and '"arguments"' in text
