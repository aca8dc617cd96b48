"""Methods by name, one file each.

Each has an async function `answer(calls)`, which returns a Trajectory whose metadata has the
`prediction`. To add one, put `<name>.py` with such a function here.
"""

from functools import cache

from research.doors import Door

DOOR = Door("method", "research.evaluation.methods", "answer", frozenset({"calls"}))
load_method = cache(DOOR.load)
