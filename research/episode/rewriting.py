"""Rewriting a query (TongSearch-QR, RQR): an episode without a search, whose text becomes the query.

Training and evaluation run this very code on top of research.episode.loop; limits, prompt and protocol are
configuration. The reference: bigai-nlco/TongSearch-QR.
"""

from collections.abc import Sequence
from dataclasses import replace

from research.episode.loop import Generate, Limits, run_episode
from research.episode.protocol import extract_answer, unboxed
from research.episode.tokens import TokenProtocol
from research.episode.trajectory import Trajectory


async def run_rewriting(
    prompt_ids: Sequence[int], generate: Generate, tokens: TokenProtocol, limits: Limits
) -> Trajectory:
    """One turn of the search loop: a policy that closes a search all the same ends there."""
    return await run_episode(prompt_ids, generate, (), tokens, replace(limits, searches=0))


def rewritten_query(trajectory: Trajectory, tokens: TokenProtocol, think: bool, boxed: bool = False) -> str:
    """The text to search with: everything that the model wrote, or with `think` the text in its answer tags.

    There in ``\\boxed{}`` if the prompt asks for that (`boxed`); a box around the whole answer is taken off
    anyway. Without outer blanks; empty where there is nothing to search with.
    """
    turns = trajectory.model_turns
    if not think:
        return "".join(turns).strip()
    return unboxed(extract_answer(turns, replace(tokens.protocol, boxed=boxed)) or "")
