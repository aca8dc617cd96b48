"""IRCoT (arXiv 2212.10509): a sentence of reasoning, a search with it, the next sentence, until one
answers.
"""

import re

from research.episode.trajectory import Passage, Trajectory
from research.evaluation.methods import Tools
from research.evaluation.methods.calls import Calls

CONCLUSION = "So the answer is:"
_CONCLUDES = re.compile(r"\banswer is\b:?(.*)", re.IGNORECASE | re.DOTALL)
_SENTENCE = re.compile(r".+?[.!?](?=\s|$)", re.DOTALL)


async def answer(question: str, tools: Tools) -> Trajectory:
    """At most `baselines.ircot_steps` sentences; without a conclusion in them, the model is made to draw
    one.
    """
    calls, thoughts = Calls(question, tools), list[str]()
    found: dict[str, Passage] = {}
    query = question
    for _ in range(tools.config.baselines.ircot_steps):
        found |= {passage.id: passage for passage in await calls.search(query) if passage.id not in found}
        fields = {"passages": calls.shown(list(found.values())), "thoughts": " ".join(thoughts)}
        said = await calls.ask("ircot", stops=["\n"], **fields)
        if concluded := _CONCLUDES.search(said):
            return calls.finish(_plain(concluded[1]))
        query = first_sentence(said) or question
        thoughts.append(query)
    fields = {"passages": calls.shown(list(found.values())), "thoughts": " ".join(thoughts)}
    return calls.finish(_plain(await calls.ask("ircot", stops=["\n"], ending=f" {CONCLUSION}", **fields)))


def first_sentence(text: str) -> str:
    """The text up to its first full stop that ends a word."""
    found = _SENTENCE.match(text.strip())
    return (found.group() if found else text).strip()


def _plain(text: str) -> str:
    return text.strip().rstrip(".").strip()
