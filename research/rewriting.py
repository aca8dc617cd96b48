"""Rewriting a query (TongSearch-QR, RQR): an episode without a search, whose text a retriever is asked.

Training and evaluation run this very code on top of research.search_loop; limits, prompt and protocol are
configuration. The reference: bigai-nlco/TongSearch-QR.
"""

from collections.abc import Sequence
from dataclasses import replace

from research.protocol import extract_answer
from research.search_loop import Generate, Limits, SearchError, run_episode
from research.token_protocol import TokenProtocol
from research.trajectory import Passage, Trajectory


async def run_rewriting(
    prompt_ids: Sequence[int], generate: Generate, tokens: TokenProtocol, limits: Limits
) -> Trajectory:
    """One turn of the search loop: a policy that closes a search all the same ends there."""
    return await run_episode(prompt_ids, generate, _no_search, tokens, replace(limits, searches=0))


def rewritten_query(trajectory: Trajectory, tokens: TokenProtocol, think: bool) -> str:
    """The text to search with: all that the model wrote, or with `think` what stands in its answer tags.

    Without the end-of-sequence token and outer blanks; empty where there is nothing to search with.
    """
    if think:
        return extract_answer(trajectory.model_turns, tokens.protocol) or ""
    written = [each for each in trajectory.segments if each.author == "model"]
    token_ids = [token for segment in written for token in segment.token_ids]
    while token_ids and token_ids[-1] in tokens.eos_token_ids:
        token_ids.pop()
    return tokens.decode(token_ids).strip()


async def _no_search(query: str) -> list[Passage]:
    raise SearchError("a rewriting makes no search")
