"""Imperfect demonstrations of the search protocol over throw-away worlds, for the mini policy's cold start.

They teach the form of an episode and the beginnings of the skill, and leave reinforcement learning something
to mend: half of them stop too early, follow the wrong relation, copy from the wrong passage, search the whole
question or guess (shares in `MIX`). Print a few with:

    python -m data.mini_demonstrations --count 5 --seed 0

No retriever is asked: a result block is the wanted passage among others of the same world. Names come from
the practice pool alone (data/mini_world.py), so no demonstration tells a fact about a name of a split.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import click

from data.mini_world import Chain, HopCounts, Relation, World, ask, practice_world
from research.protocol import Protocol, closing, opening, render_result

# Shares of the kinds of demonstration. Only "clean" and "retry" end with the right answer (but for luck).
MIX = {
    "clean": 0.34,
    "retry": 0.12,  # first searches badly, sees that the passage is missing, searches again
    "early": 0.24,  # stops one hop early
    "relation": 0.10,  # follows a wrong relation at the last hop
    "entity": 0.06,  # copies the answer from a wrong passage
    "question": 0.09,  # searches the whole question and takes a name from what comes back
    "guess": 0.05,  # gives up without a search
}
PASSAGES = 3
# A dense retriever puts the wanted passage of this world first in about 98 of 100 searches; demonstrations
# show it lower more often, so that the policy learns to look for the name and not for the first line.
RANK_WEIGHTS = (8, 1, 1)
MISSING = 0.05
QUESTIONS_PER_WORLD = 60


@dataclass(frozen=True)
class Demonstration:
    """One episode. `segments` alternate: (text, True) is the policy's turn, (text, False) a result."""

    question: str
    kind: str
    segments: tuple[tuple[str, bool], ...]
    answer: str
    golden: str


def turn(thought: str, tag: str, content: str) -> str:
    """What the policy writes in one go: a thought and a query or an answer; blanks save tokens for names."""
    protocol = Protocol()
    content = f"\\boxed{{ {content}}}" if tag == protocol.answer else f" {content}"
    parts = ((protocol.think, f" {thought}"), (tag, content))
    return "".join(f"{opening(name)}{text}{closing(name)}" for name, text in parts)


@dataclass
class _Episode:
    """An episode in the making; `shown` are the names whose passages the last result held, in rank order."""

    rng: random.Random
    world: World
    passages: int
    segments: list[tuple[str, bool]] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)

    def search(self, thought: str, query: str, wanted: str | None) -> bool:
        """Search and receive passages, among them the one about `wanted` unless None; True if it is there."""
        self.segments.append((turn(thought, Protocol().search, query), True))
        self.shown = self._retrieve(wanted)
        passages = [self.world.contents(name) for name in self.shown]
        self.segments.append((render_result(passages, Protocol()), False))
        return wanted in self.shown

    def answer(self, thought: str, answer: str) -> str:
        """End the episode; returns the answer."""
        self.segments.append((turn(thought, Protocol().answer, answer), True))
        return answer

    def _retrieve(self, wanted: str | None) -> list[str]:
        if wanted is None:
            return self.rng.sample(list(self.world.kinds), self.passages)
        names = self.rng.sample(_others(self.rng, self.world, wanted), self.passages - 1)
        rank = self.rng.choices(range(self.passages), RANK_WEIGHTS[: self.passages])[0]
        return [*names[:rank], wanted, *names[rank:]]


def _others(rng: random.Random, world: World, name: str) -> list[str]:
    """Other names: those whose passages a retriever confuses with that of `name`, and some more at random."""
    words = set(name.split())
    near = {other for other in world.kinds if words & set(other.split())}
    near |= {other for other, facts in world.facts.items() if name in facts.values()}
    far = rng.sample(list(world.kinds), len(near) + PASSAGES)
    return sorted({*near, *far} - {name})


def demonstrate(rng: random.Random, world: World, chain: Chain, kind: str, passages: int) -> Demonstration:
    """One demonstration of a kind of `MIX`, with `passages` passages (1 to 3) in every result block."""
    episode = _Episode(rng, world, passages)
    if kind == "guess":
        answer = episode.answer("no idea", rng.choice(list(world.kinds)))
    elif kind == "question":
        episode.search("search it", chain.text.rstrip("?"), chain.start)
        answer = episode.answer("maybe this", _any_object(rng, world, rng.choice(episode.shown)))
    else:
        answer = _follow(episode, chain, kind)
    return Demonstration(chain.text, kind, tuple(episode.segments), answer, chain.chain[-1])


def _follow(episode: _Episode, chain: Chain, kind: str) -> str:
    """Search hop by hop, with the fault of `kind`; returns the answer given."""
    rng, world = episode.rng, episode.world
    path = list(chain.path)
    if kind == "early" and len(path) > 1:
        path.pop()
    faulty_hop = rng.randrange(len(path)) if kind == "retry" else None
    subject, known = chain.start, ""
    for hop, relation in enumerate(path):
        _find(episode, known, path[hop:], subject, bad_first=hop == faulty_hop)
        last = hop == len(path) - 1
        if kind == "relation" and last:
            relation = rng.choice([other for other in world.facts[subject] if other != relation])
        found = world.facts[subject][relation]
        if kind == "entity" and last:
            found = _any_object(rng, world, rng.choice(episode.shown))
        known, subject = f"the {relation.name} is {found}", found
    return episode.answer(known, subject)


def _find(episode: _Episode, known: str, ahead: Sequence[Relation], subject: str, bad_first: bool) -> None:
    """Search for the passage about `subject` until it is shown: three searches at most.

    Every thought lists all that is `ahead`, innermost first: by copying the policy then knows what to do next
    and when to stop. Where a thought named the next relation alone, it learnt to search three times, always.
    """
    rng = episode.rng
    plan = ", then ".join(f"the {relation.name}" for relation in ahead)
    thought, again = f"{known}, then {plan}" if known else plan, f"not found, again {plan}"
    wanted = f"the {ahead[0].name}"
    if bad_first:
        other = rng.choice(list(episode.world.kinds))
        episode.search(thought, rng.choice([wanted, f"{wanted} of {other}"]), None)
        thought = again
    if not episode.search(thought, f"{wanted} of {subject}", None if rng.random() < MISSING else subject):
        episode.search(again, subject, subject)


def _any_object(rng: random.Random, world: World, name: str) -> str:
    return rng.choice(list(world.facts[name].values()))


def demonstrations(
    seed: int, hops: Sequence[int], passages: int = PASSAGES, mix: dict[str, float] | None = None
) -> Iterator[Demonstration]:
    """Endless demonstrations, each hop count equally often; the same arguments give the same sequence."""
    rng = random.Random(f"demonstrations {seed} {hops} {passages}")
    mix = mix or MIX
    while True:
        world = practice_world(rng.getrandbits(64))
        chains = [chain for h in hops for chain in ask(rng, world, h, QUESTIONS_PER_WORLD // len(hops))]
        rng.shuffle(chains)
        for chain in chains:
            kind = rng.choices(list(mix), list(mix.values()))[0]
            yield demonstrate(rng, world, chain, kind, passages)


@click.command()
@click.option("--count", default=5, show_default=True, type=click.IntRange(1), help="How many to print.")
@click.option("--seed", default=0, show_default=True, help="Same seed, same demonstrations.")
@click.option("--hops", type=HopCounts(least=1), default="2", show_default=True, help="Hop counts.")
def main(count: int, seed: int, hops: tuple[int, ...]) -> None:
    """Print demonstrations of the search protocol, each with its kind.

    Example: python -m data.mini_demonstrations --count 5 --hops 2,3
    """
    for _, demonstration in zip(range(count), demonstrations(seed, hops), strict=False):
        right = "right" if demonstration.answer == demonstration.golden else f"wrong: {demonstration.golden}"
        click.echo(f"# {demonstration.kind}, {right}\n{demonstration.question}")
        click.echo("".join(text for text, _ in demonstration.segments) + "\n")


if __name__ == "__main__":
    main()
