"""IRCoT (arXiv 2212.10509): a sentence of reasoning, a search with it, until one states the answer."""

import re

from research.episode.trajectory import Passage, Trajectory
from research.evaluation.methods.calls import Calls

CONCLUSION = "So the answer is:"
_CONCLUDES = re.compile(r"\banswer is\b:?(.*)", re.IGNORECASE | re.DOTALL)
_SENTENCE = re.compile(r".+?[.!?](?=\s|$)", re.DOTALL)


async def answer(calls: Calls) -> Trajectory:
    """At most `baselines.ircot_steps` sentences; then the model is made to state an answer."""
    thoughts, passages = list[str](), dict[str, Passage]()

    async def ask(ending: str = "") -> str:
        fields = {"passages": calls.shown([*passages.values()]), "thoughts": " ".join(thoughts)}
        return await calls.ask("ircot", stops=["\n"], ending=ending, **fields)

    query = calls.question
    for _ in range(calls.config.baselines.ircot_steps):
        for passage in await calls.search(query):
            passages.setdefault(passage.id, passage)
        reply = await ask()
        if concluded := _CONCLUDES.search(reply):
            return calls.finish(_plain(concluded[1]))
        query = first_sentence(reply) or calls.question
        thoughts.append(query)
    return calls.finish(_plain(await ask(f" {CONCLUSION}")))


def first_sentence(text: str) -> str:
    """The text up to its first full stop that ends a word."""
    sentence = _SENTENCE.match(text.strip())
    return (sentence.group() if sentence else text).strip()


def _plain(text: str) -> str:
    return text.strip().rstrip(".").strip()
