"""Imperfect demonstrations of the search protocol over throw-away worlds, for the mini policy's cold start.

They teach the form of an episode and the single skills, and leave reinforcement learning something to learn:
the demonstrator often stops one hop early, searches in the question's words, asks about the wrong entity or
gives up (rates in `FAULTS`). Print a few with:

    python -m research.datasets.mini.demonstrations --count 5 --seed 0

Results are what the mini world's encoder really finds. Names come from the practice pool alone
(research/datasets/mini/world.py), so no demonstration reveals a fact about a name of a split.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import click
import numpy as np

from research.datasets.mini.encoder import encode
from research.datasets.mini.language import PAGES, Relation
from research.datasets.mini.world import STATED_OTHERWISE, Chain, Entity, ask, hops_option, practice_world
from research.episode.protocol import Protocol, closing, opening, render_passage, render_result
from research.episode.trajectory import Passage

QUESTIONS_PER_WORLD = 300
NO_IDEA = "no idea"
TEMPTING = ("person", "city")


@dataclass(frozen=True)
class Faults:
    """How often the demonstrator fails, each a probability in [0, 1].

    Attributes:
        early: of an episode with several hops: it stops one hop early at a person or a city, which look like
        answers; a third as often at anything else.
        guess: of an episode: it gives up before any search.
        naive: of a hop's first search: it uses the question's words, not those of a passage.
        astray: of a hop's first search: it asks about another entity.
        resign: of a search that missed the fact: it gives up instead of searching in other words.
    """

    early: float = 0.0
    guess: float = 0.0
    naive: float = 0.0
    astray: float = 0.0
    resign: float = 0.0


CLEAN = Faults()
# For single hops: it often begins with the wrong words and always finds better ones.
PATIENT = Faults(naive=0.5)
# Chosen so that the greedy cold-start policy answers about a third of two-hop questions.
FAULTS = Faults(early=0.75, guess=0.03, naive=0.5, astray=0.08, resign=0.4)


@dataclass(frozen=True)
class Demonstration:
    """One episode. `segments` alternate: (text, True) is the policy's turn, (text, False) a result."""

    question: str
    segments: tuple[tuple[str, bool], ...]


@dataclass(frozen=True)
class SearchDemonstration(Demonstration):
    """One of searching, with the answer given."""

    answer: str
    golden_answers: tuple[str, ...]
    faults: frozenset[str]

    @property
    def right(self) -> bool:
        return self.answer in self.golden_answers


RESEARCH = Protocol()


def turn(thought: str, tag: str, content: str, protocol: Protocol = RESEARCH) -> str:
    """One turn of the policy: a thought and a query or an answer; the blanks save tokens for names."""
    boxed = tag == protocol.answer and protocol.boxed
    content = f"\\boxed{{ {content}}}" if boxed else f" {content}"
    parts = ((protocol.think, f" {thought}"), (tag, content))
    return "".join(f"{opening(name)}{text}{closing(name)}" for name, text in parts)


class PracticeWorld:
    """A throw-away world with its own small index."""

    def __init__(self, seed: int) -> None:
        self.world = practice_world(seed)
        self.pages = [(entity, page) for entity in self.world.entities for page in range(PAGES)]
        self.contents = [self.world.contents(entity, page) for entity, page in self.pages]
        self.by_word = np.ascontiguousarray(encode(self.contents).T)

    def search(self, query: str) -> int:
        """The place of the best passage."""
        vector = encode([query])[0]
        known = vector.nonzero()[0]  # a handful of several hundred words
        return int(np.argmax(vector[known] @ self.by_word[known]))


@dataclass
class _Episode:
    """An episode that is being written."""

    rng: random.Random
    practice: PracticeWorld
    chain: Chain
    rates: Faults
    protocol: Protocol
    segments: list[tuple[str, bool]] = field(default_factory=list)
    faults: set[str] = field(default_factory=set)

    def fails(self, fault: str, share: float = 1.0) -> bool:
        """Draw whether this fault happens here, at a `share` of its rate, and record it."""
        happens: bool = self.rng.random() < share * getattr(self.rates, fault)
        if happens:
            self.faults.add(fault)
        return happens

    def search(self, thought: str, query: str, subject: Entity, relation: Relation) -> bool:
        """Search; True if the passage that states `relation` of `subject` was found."""
        self.segments.append((turn(thought, self.protocol.search, query, self.protocol), True))
        place = self.practice.search(query)
        found = Passage(str(place), self.practice.contents[place])
        block = render_result([render_passage(found, 1, self.protocol)], self.protocol)
        self.segments.append((block, False))
        return (subject, relation.page) == self.practice.pages[place]

    def answer(self, thought: str, answer: str) -> str:
        """End the episode; returns the answer."""
        self.segments.append((turn(thought, self.protocol.answer, answer, self.protocol), True))
        return answer


def demonstrate(
    rng: random.Random, practice: PracticeWorld, chain: Chain, rates: Faults, protocol: Protocol = RESEARCH
) -> SearchDemonstration:
    """One demonstration with one passage in every result block."""
    episode = _Episode(rng, practice, chain, rates, protocol)
    answer = episode.answer(NO_IDEA, NO_IDEA) if episode.fails("guess") else _follow(episode)
    golden, faults = chain.entities[-1].golden_answers, frozenset(episode.faults)
    return SearchDemonstration(chain.text, tuple(episode.segments), answer, golden, faults)


def _follow(episode: _Episode) -> str:
    """Search hop by hop; returns the answer given.

    Every thought lists all that is still to be found, so that copying it tells the policy what to do next
    and when to stop. If a thought named the next relation alone, it learnt one fixed number of searches.
    """
    chain = episode.chain
    hops = len(chain.path)
    if hops > 1:
        tempting = chain.entities[-2].kind in TEMPTING
        hops -= episode.fails("early", 1.0 if tempting else 1 / 3)
    known = ""
    for hop in range(hops):
        plan = ", then ".join(f"the {phrase}" for phrase in chain.phrases[hop:])
        if not _find(episode, hop, known, plan):
            return episode.answer("not there", NO_IDEA)
        known = f"the {chain.phrases[hop]} is {chain.entities[hop].mention}"
    return episode.answer(known, chain.entities[hops - 1].mention)


def _find(episode: _Episode, hop: int, known: str, plan: str) -> bool:
    """Search for the passage that takes this hop, in other words after each miss; False if it gives up."""
    relation, subject = episode.chain.path[hop], episode.chain.subjects[hop]
    ways = list(relation.passage_phrases)
    if episode.rng.random() < STATED_OTHERWISE:
        ways.reverse()
    queries = [(way, subject) for way in ways]
    if episode.fails("naive"):
        queries.insert(0, (f"the {episode.chain.phrases[hop]} of", subject))
    if episode.fails("astray"):
        queries.insert(0, (queries[0][0], episode.rng.choice(episode.practice.world.entities)))
    thought = f"{known}, then {plan}" if known else plan
    for phrase, entity in queries:
        if episode.search(thought, f"{phrase} {entity.mention}", subject, relation):
            return True
        if episode.fails("resign"):
            return False
        # Naming what was tried makes trying it again less likely.
        thought = f"not by {phrase.removesuffix(' of')}, then {plan}"
    return False


def demonstrations(
    seed: int, hops: Sequence[int], rates: Faults = FAULTS, protocol: Protocol = RESEARCH
) -> Iterator[SearchDemonstration]:
    """Endless demonstrations, each hop count equally often; the same arguments give the same sequence."""
    rng = random.Random(f"demonstrations {seed} {hops} 1")
    while True:
        practice = PracticeWorld(rng.getrandbits(64))
        count = QUESTIONS_PER_WORLD // len(hops)
        chains = [chain for h in hops for chain in ask(rng, practice.world, h, count)]
        rng.shuffle(chains)
        for chain in chains:
            yield demonstrate(rng, practice, chain, rates, protocol)


@click.command()
@click.option("--count", default=5, show_default=True, type=click.IntRange(1), help="How many to print.")
@click.option("--seed", default=0, show_default=True, help="Same seed, same demonstrations.")
@hops_option(least=1, default="2")
def main(count: int, seed: int, hops: tuple[int, ...]) -> None:
    """Print demonstrations of the search protocol, each with its faults.

    Example: python -m research.datasets.mini.demonstrations --count 5 --hops 2,3
    """
    for _, each in zip(range(count), demonstrations(seed, hops), strict=False):
        right = "right" if each.right else f"wrong: {each.golden_answers[0]}"
        click.echo(f"# {', '.join(sorted(each.faults)) or 'no fault'}; {right}\n{each.question}")
        click.echo("".join(text for text, _ in each.segments) + "\n")


if __name__ == "__main__":
    main()
