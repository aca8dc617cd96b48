"""Controls of an evaluation: the same questions with a search that cannot help.

A policy that answers under them has memorised the answers, or finds them in the question.
"""

from collections.abc import Sequence
from itertools import cycle
from typing import Any

from research.episode.tools import SearchFunction
from research.episode.trajectory import Passage

CLOSED_BOOK, SHUFFLED = "closed_book", "shuffled"
CONTROLS = (CLOSED_BOOK, SHUFFLED)


def controlled(search: SearchFunction, control: str, decoys: Sequence[str]) -> SearchFunction:
    """The search of one episode under a control; an empty `control` leaves it as it is.

    Args:
        control: ``closed_book``: every search finds nothing. ``shuffled``: it finds what one of ``decoys``
            (texts of other questions, taken in turn) would find.

    Raises:
        ValueError: no control has that name, or there is no decoy to shuffle with.
    """
    if not control:
        return search
    if control not in CONTROLS or (control == SHUFFLED and not decoys):
        raise ValueError(f"control {control!r} with {len(decoys)} decoys; there are: {', '.join(CONTROLS)}")
    others = cycle(decoys)

    async def search_for_another(query: str, **settings: Any) -> list[Passage]:
        return await search(query=next(others), **settings) if control == SHUFFLED else []

    return search_for_another
