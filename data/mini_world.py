"""A small generated world for learning to search: passages about invented entities, questions of 2 to 4 hops.

Everything follows from the seed; nothing is downloaded. Writes corpus.jsonl and SPLIT.questions.jsonl for the
splits train, validation and test:

    python -m data.mini_world --out DIR --seed 0 --passages 2000

Names are dealt into four pools by a hash (`pool_of`): train, validation, test and practice. No seed can move
a name to another pool, so a world made for the cold start (`practice_world`) meets no name of a split.
"""

import hashlib
import json
import os
import random
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import click

from data import DataError
from data.questions import Question, hop_counts, write_questions

SPLIT_SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}
KIND_SHARES = {"person": 0.35, "city": 0.2, "book": 0.2, "company": 0.15, "country": 0.1}
# Eight hash buckets; practice gets half of them, because the cold start uses up names fastest.
POOL_OF_BUCKET = ("validation", "test", "train", "train", "practice", "practice", "practice", "practice")
SMALLEST_WORLD = 20
PARAPHRASED = 0.25
HOPS = (2, 3, 4)
ID_PREFIX = "mini_p"

Row = dict[str, Any]


@dataclass(frozen=True)
class Relation:
    """A function from entities of one kind to entities of another, with the ways to say it.

    `paraphrase` is the noun phrase that some questions use for "`name` of {s}"; `sentences` state the fact.
    """

    subject: str
    name: str
    object: str
    paraphrase: str
    sentences: tuple[str, ...]


# One line a relation: subject kind, name, object kind, paraphrase, then sentences ({s} subject, {o} object).
_RELATION_TABLE = """
person | mother | person | woman who raised {s} | {s} was raised by {o}. | Their mother was {o}.
person | mentor | person | teacher who trained {s} | {s} was trained by {o}. | Their mentor was {o}.
person | birthplace | city | city where {s} was born | {s} was born in {o}. | Their birthplace is {o}.
person | employer | company | company that {s} works for | {s} works for {o}. | Their employer is {o}.
city | country | country | country where {s} lies | {s} lies in {o}. | Its country is {o}.
city | mayor | person | person who governs {s} | {s} is governed by {o}. | Its mayor is {o}.
city | twin city | city | city paired with {s} | {s} is paired with {o}. | Its twin city is {o}.
country | capital | city | seat of government of {s} | {s} is ruled from {o}. | Its capital is {o}.
country | president | person | person who leads {s} | {s} is led by {o}. | Its president is {o}.
country | neighbour | country | country that borders {s} | {s} borders {o}. | Its neighbour is {o}.
company | founder | person | person who founded {s} | {s} was founded by {o}. | Its founder was {o}.
company | owner | person | person who bought {s} | {s} was bought by {o}. | Its owner is {o}.
company | headquarters | city | city where {s} is based | {s} is based in {o}. | Its headquarters are in {o}.
book | author | person | person who wrote {s} | {s} was written by {o}. | Its author is {o}.
book | publisher | company | company that printed {s} | {s} was printed by {o}. | Its publisher is {o}.
book | setting | city | city where {s} takes place | {s} takes place in {o}. | Its setting is {o}.
"""


def _relation(line: str) -> Relation:
    subject, name, target, paraphrase, *sentences = (part.strip() for part in line.split("|"))
    return Relation(subject, name, target, paraphrase, tuple(sentences))


RELATIONS = tuple(_relation(line) for line in _RELATION_TABLE.strip().splitlines())
INTRODUCTIONS = {
    "person": ("{s} is a painter.", "{s} is a chemist.", "{s} is a singer.", "{s} is a sailor."),
    "city": ("{s} is a city on a river.", "{s} is a city near the sea.", "{s} is a city in the hills."),
    "book": ("{s} is a novel.", "{s} is a play in three acts.", "{s} is a book of stories."),
    "company": ("{s} is a company that makes lamps.", "{s} is a shipping company.", "{s} is a glass maker."),
    "country": ("{s} is a country of islands.", "{s} is a northern country.", "{s} is a country of lakes."),
}
REMARKS = {
    "person": ("They keep bees in the garden.", "They won several prizes.", "They travelled widely."),
    "city": ("A fair is held every spring.", "The old market draws visitors.", "Its walls still stand."),
    "book": ("It was praised by the critics.", "A film of it was planned.", "It was translated many times."),
    "company": ("It trains young workers.", "Profits rose for years.", "A fire destroyed the old workshop."),
    "country": ("It exports timber and fish.", "The winters there are long.", "Its flag shows a white bird."),
}


def _words(seed: str, *parts: str) -> tuple[str, ...]:
    """128 pronounceable words, one piece from each part; any two differ in two pieces, to be told apart."""
    rng = random.Random(seed)
    chosen: list[tuple[str, ...]] = []
    while len(chosen) < 128:
        word = tuple(rng.choice(part.split()) for part in parts)
        if all(sum(a != b for a, b in zip(word, other, strict=True)) > 1 for other in chosen):
            chosen.append(word)
    return tuple("".join(word).capitalize() for word in chosen)


# Not from the user's seed: every world draws on the same words, so one tokenizer serves them all.
ONSETS, VOWELS = "b br d dr f fl g gr h j k l m n p pr r s st t tr v w z", "a e i o u"
FIRST_WORDS = _words("first", ONSETS, VOWELS, "l r n m v d rl ln nd", "a o i en ia")
LAST_WORDS = _words("last", ONSETS, VOWELS, "nn rr mm lt rk nd sk v dd", "er ow ett ell in ole")


@dataclass(frozen=True)
class Chain:
    """A question with its way to the answer: `path[i]` leads to `chain[i]`, and `chain[-1]` is the answer."""

    text: str
    start: str
    path: tuple[Relation, ...]
    chain: tuple[str, ...]

    @property
    def subjects(self) -> tuple[str, ...]:
        """The entity that each hop asks about."""
        return (self.start, *self.chain[:-1])


@dataclass
class World:
    """Entities of five kinds, one object per (entity, relation), and one passage text per entity."""

    kinds: dict[str, str]
    facts: dict[str, dict[Relation, str]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)

    def contents(self, name: str) -> str:
        """The passage about `name` as a retriever serves it: title, newline, text."""
        return f"{name}\n{self.texts[name]}"


@dataclass(frozen=True)
class MiniWorld:
    """What is written to disk, corpus rows and the questions of each split, and the worlds they came from."""

    corpus: list[Row]
    questions: dict[str, list[Question]]
    worlds: dict[str, World]

    def write(self, folder: Path) -> None:
        """Write corpus.jsonl and a SPLIT.questions.jsonl per split. Raises DataError."""
        with filling(folder) as scratch:
            with (scratch / "corpus.jsonl").open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in self.corpus)
            for split, questions in self.questions.items():
                write_questions(scratch / f"{split}.questions.jsonl", questions)


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """A scratch folder whose files become those of `folder` if the block ends well.

    A new folder appears whole; in an old one file after file is replaced. Raises DataError if that fails.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside, prefix = folder.parent, f".{folder.name}."
        with tempfile.TemporaryDirectory(prefix=prefix, dir=beside, ignore_cleanup_errors=True) as name:
            scratch = Path(name)
            scratch.chmod(0o755)  # made for its owner alone
            yield scratch
            if folder.exists():
                for file in scratch.iterdir():
                    os.replace(file, folder / file.name)
            else:
                scratch.rename(folder)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror or error})") from error


def pool_of(name: str) -> str:
    """The pool that owns a name: "train", "validation", "test" or "practice"."""
    return POOL_OF_BUCKET[zlib.crc32(name.encode()) % len(POOL_OF_BUCKET)]


@cache
def names_in_pool(pool: str) -> tuple[str, ...]:
    """All names of one pool, in a fixed order."""
    names = (f"{first} {last}" for first in FIRST_WORDS for last in LAST_WORDS)
    return tuple(name for name in names if pool_of(name) == pool)


def make_world(rng: random.Random, names: Sequence[str]) -> World:
    """A world whose entities bear `names`, at least SMALLEST_WORLD of them: kinds, facts, then passages."""
    world = World(kinds=_deal_kinds(names))
    members = {kind: [name for name in names if world.kinds[name] == kind] for kind in KIND_SHARES}
    for name, kind in world.kinds.items():
        world.facts[name] = {
            relation: rng.choice([other for other in members[relation.object] if other != name])
            for relation in RELATIONS
            if relation.subject == kind
        }
        world.texts[name] = _passage(rng, name, kind, world.facts[name])
    return world


def practice_world(seed: int, entities: int = 80) -> World:
    """A throw-away world for demonstrations; it shares no name with any train, validation or test world."""
    rng = random.Random(f"practice {seed}")
    return make_world(rng, rng.sample(names_in_pool("practice"), entities))


def _deal_kinds(names: Sequence[str]) -> dict[str, str]:
    kinds: dict[str, str] = {}
    start, total = 0, 0.0
    for kind, share in KIND_SHARES.items():
        total += share
        end = round(total * len(names))
        kinds.update(dict.fromkeys(names[start:end], kind))
        start = end
    return kinds


def _passage(rng: random.Random, name: str, kind: str, facts: dict[Relation, str]) -> str:
    sentences = [rng.choice(relation.sentences).format(s=name, o=other) for relation, other in facts.items()]
    sentences += rng.sample(REMARKS[kind], rng.choice((1, 1, 2)))
    rng.shuffle(sentences)
    return " ".join([rng.choice(INTRODUCTIONS[kind]).format(s=name), *sentences])


def ask(rng: random.Random, world: World, hops: int, count: int) -> list[Chain]:
    """`count` different questions of `hops` hops; no entity comes twice in a chain.

    Raises DataError when the world does not hold that many (found by drawing).
    """
    found: dict[tuple[str, tuple[Relation, ...]], Chain] = {}
    names = list(world.kinds)
    for _ in range(30 * count + 100):
        if len(found) == count:
            break
        chain = _walk(rng, world, rng.choice(names), hops)
        if len({chain.start, *chain.chain}) == hops + 1:
            found.setdefault((chain.start, chain.path), chain)
    else:
        raise DataError(f"{len(names)} passages hold under {count} {hops}-hop questions: raise --passages")
    return list(found.values())


def _walk(rng: random.Random, world: World, start: str, hops: int) -> Chain:
    path: list[Relation] = []
    chain = [start]
    text = start
    for _ in range(hops):
        relation = rng.choice(list(world.facts[chain[-1]]))
        path.append(relation)
        chain.append(world.facts[chain[-1]][relation])
        phrase = relation.paraphrase if rng.random() < PARAPHRASED else f"{relation.name} of {{s}}"
        text = "the " + phrase.format(s=text)
    asked = "Who" if path[-1].object == "person" else "What"
    return Chain(f"{asked} is {text}?", start, tuple(path), tuple(chain[1:]))


def build(
    seed: int,
    passages: int = 2000,
    train: int = 1800,
    validation: int = 100,
    test: int = 100,
    hops: Sequence[int] = HOPS,
) -> MiniWorld:
    """Three worlds with disjoint names over one corpus of `passages` passages.

    `train` questions in all, shared evenly over `hops`; `validation` and `test` questions for each hop count.
    Raises DataError when the passages are too few, or too many for the names there are.
    """
    worlds = {split: _split_world(seed, split, passages) for split in SPLIT_SHARES}
    corpus = _corpus_rows(worlds.values())
    ids = {row["title"]: row["id"] for row in corpus}
    counts = {
        "train": {h: train // len(hops) + (i < train % len(hops)) for i, h in enumerate(hops)},
        "validation": dict.fromkeys(hops, validation),
        "test": dict.fromkeys(hops, test),
    }
    questions = {}
    for split, world in worlds.items():
        rng = random.Random(f"{split} questions {seed}")
        chains = [chain for h, count in counts[split].items() for chain in ask(rng, world, h, count)]
        rng.shuffle(chains)
        questions[split] = [_question(chain, ids) for chain in chains]
    return MiniWorld(corpus, questions, worlds)


def _split_world(seed: int, split: str, passages: int) -> World:
    names, share = names_in_pool(split), SPLIT_SHARES[split]
    entities = round(passages * share)
    if not SMALLEST_WORLD <= entities <= len(names):
        raise DataError(
            f"the {split} world would have {entities} passages; it needs {SMALLEST_WORLD} to {len(names)} "
            f"(ask for {round(SMALLEST_WORLD / share)} to {int(len(names) / share)} in all)"
        )
    rng = random.Random(f"{split} world {seed}")
    return make_world(rng, rng.sample(names, entities))


def _corpus_rows(worlds: Iterable[World]) -> list[Row]:
    pages = [(name, world) for world in worlds for name in world.kinds]
    # Hash order mixes the splits, so that neither position nor id tells which split a passage serves.
    pages.sort(key=lambda page: hashlib.sha256(page[1].contents(page[0]).encode()).digest())
    return [
        {"id": f"{ID_PREFIX}{i:05d}", "title": name, "text": w.texts[name], "contents": w.contents(name)}
        for i, (name, w) in enumerate(pages)
    ]


def _question(chain: Chain, ids: dict[str, str]) -> Question:
    hops = len(chain.path)
    support = [ids[subject] for subject in chain.subjects]
    steps = [
        {
            "question": f"{chain.start if hop == 0 else f'#{hop}'} >> {relation.name}",
            "answer": answer,
            "support_title": subject,
            "support_id": ids[subject],
        }
        for hop, (subject, relation, answer) in enumerate(
            zip(chain.subjects, chain.path, chain.chain, strict=True)
        )
    ]
    metadata = {
        "source": "mini_world",
        "hops": hops,
        "type": f"{hops}hop",
        "supporting_titles": list(chain.subjects),
        "supporting_ids": support,
        "question_decomposition": steps,
    }
    # As in MuSiQue an id names the single facts that were chained: passage and relation numbers.
    pairs = zip(support, chain.path, strict=True)
    facts = [f"{int(page.removeprefix(ID_PREFIX))}{RELATIONS.index(each):02d}" for page, each in pairs]
    return Question(f"{hops}hop__{'_'.join(facts)}", chain.text, (chain.chain[-1],), metadata)


class HopCounts(click.ParamType):
    """Comma-separated hop counts, such as "2,3"; each from `least` to 4."""

    name = "hops"

    def __init__(self, least: int) -> None:
        self.least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The counts as a tuple, ascending, without repeats; a wrong value ends the command with one line."""
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in value.split(",")]
        if not all(part.isdigit() and self.least <= int(part) <= max(HOPS) for part in parts):
            self.fail(f"{value!r}: give numbers from {self.least} to {max(HOPS)}, with commas", param, ctx)
        return tuple(sorted({int(part) for part in parts}))


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the files.")
@click.option("--seed", default=0, show_default=True, help="Same seed, same bytes.")
@click.option("--passages", default=2000, show_default=True, help="Passages in the one corpus.")
@click.option("--train", default=1800, show_default=True, type=click.IntRange(1), help="Questions in all.")
@click.option("--validation", default=100, show_default=True, type=click.IntRange(1), help="Per hop count.")
@click.option("--test", default=100, show_default=True, type=click.IntRange(1), help="Per hop count.")
@click.option("--hops", type=HopCounts(least=2), default="2,3,4", show_default=True, help="Hop counts.")
def main(
    out: Path, seed: int, passages: int, train: int, validation: int, test: int, hops: tuple[int, ...]
) -> None:
    """Make a small world of invented entities: a corpus and multi-hop questions about it.

    Example: python -m data.mini_world --out data/mini_world
    """
    world = build(seed, passages, train, validation, test, hops)
    world.write(out)
    click.echo(f"{out / 'corpus.jsonl'}: {len(world.corpus)} passages")
    for split, questions in world.questions.items():
        click.echo(f"{out / split}.questions.jsonl: {len(questions)} questions ({hop_counts(questions)})")


if __name__ == "__main__":
    main()
