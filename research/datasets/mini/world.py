"""A generated world for learning to search: passages about invented entities, questions of 2 to 4 hops.

Everything follows from the seed; nothing is downloaded. Writes corpus.jsonl and SPLIT.questions.jsonl for the
splits train, validation and test:

    python -m research.datasets.mini.world --out DIR --seed 0 --passages 20000

What makes searching hard: a question asks for a relation in other words than the passage states it; an entity
has two passages, and those about others mention it too; every seventh entity shares its name with another,
and an epithet tells them apart. A hash deals names into four pools (`pool_of`): train, validation, test and
practice. No seed can move a name to another pool, so a world made for the cold start (`practice_world`)
contains no name of a split.
"""

import hashlib
import random
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import click

from research.datasets.json_rows import write_splits
from research.datasets.mini import language
from research.datasets.mini.language import KIND_SHARES, PAGES, RELATIONS, Relation, first_names, last_names
from research.datasets.questions import Question, hop_counts
from research.errors import DataError

SPLIT_SHARES = {"train": 0.6, "validation": 0.15, "test": 0.25}
# Eight hash buckets; practice gets half of them, because the cold start uses up names fastest.
POOL_OF_BUCKET = ("validation", "test", "train", "train", "practice", "practice", "practice", "practice")
SMALLEST_WORLD = 40  # entities
# A practice world is small; made of few words, its names are as easily confused as those of a large one.
PRACTICE_ENTITIES, PRACTICE_FIRST_NAMES, PRACTICE_LAST_NAMES = 400, 60, 16
NAMESAKES = 0.07  # of all entities share their name with another one of the same kind
ASKED_OTHERWISE = 0.4  # of the relations in questions are asked for in the second way
STATED_OTHERWISE = 0.3  # of the facts in passages are stated in the second way
HOPS = (2, 3, 4)
# Of the hop counts in training questions, about as in MuSiQue. Questions of four hops are for validation and
# test: a policy that searches as often as it must answers them too.
TRAIN_SHARES = {2: 0.6, 3: 0.4}
ID_PREFIX = "mini_p"

Row = dict[str, Any]
Group = TypeVar("Group")
Drawn = TypeVar("Drawn")


@dataclass(frozen=True, eq=False)
class Entity:
    """Someone or something that has passages. If `has_namesake`, only the epithet tells which one."""

    name: str
    kind: str
    epithet: str
    has_namesake: bool

    @property
    def mention(self) -> str:
        """Its name in texts and questions: "Flora Jarrow", or "Flora Jarrow the painter"."""
        return f"{self.name} the {self.epithet}" if self.has_namesake else self.name

    @property
    def title(self) -> str:
        """The title of its passages: "Flora Jarrow", or "Flora Jarrow (painter)"."""
        return f"{self.name} ({self.epithet})" if self.has_namesake else self.name

    @property
    def golden_answers(self) -> tuple[str, ...]:
        """The name, and for a namesake also the name with its epithet on either side."""
        names = (self.name, self.mention, f"{self.epithet} {self.name}")
        return names if self.has_namesake else names[:1]


@dataclass(frozen=True)
class Chain:
    """A question with the way to its answer: `path[i]` leads to `entities[i]`, whose last is the answer.

    `phrases[i]` is the phrase by which the question asks for `path[i]`.
    """

    text: str
    start: Entity
    path: tuple[Relation, ...]
    phrases: tuple[str, ...]
    entities: tuple[Entity, ...]

    @property
    def subjects(self) -> tuple[Entity, ...]:
        """The entity that each hop asks about."""
        return (self.start, *self.entities[:-1])


@dataclass
class World:
    """Entities, one object per (entity, relation), how passages state it, and PAGES texts per entity."""

    entities: list[Entity]
    facts: dict[Entity, dict[Relation, Entity]] = field(default_factory=dict)
    phrases: dict[Entity, dict[Relation, str]] = field(default_factory=dict)
    texts: dict[Entity, tuple[str, ...]] = field(default_factory=dict)

    def contents(self, entity: Entity, page: int) -> str:
        """A passage as a retriever serves it: title, newline, text."""
        return f"{entity.title}\n{self.texts[entity][page]}"


@dataclass(frozen=True)
class MiniWorld:
    """What is written to disk, corpus rows and the questions of each split, and the worlds they came from."""

    corpus: list[Row]
    questions: dict[str, list[Question]]
    worlds: dict[str, World]

    def write(self, folder: Path) -> None:
        """Write corpus.jsonl and a SPLIT.questions.jsonl per split. Raises DataError."""
        splits = {split: map(vars, questions) for split, questions in self.questions.items()}
        write_splits(folder, "questions", splits, self.corpus)


def pool_of(name: str) -> str:
    """The pool that owns a name: "train", "validation", "test" or "practice"."""
    return POOL_OF_BUCKET[zlib.crc32(name.encode()) % len(POOL_OF_BUCKET)]


@cache
def names_in_pool(pool: str, kind: str) -> tuple[str, ...]:
    """All names of one pool for entities of one kind, in a fixed order."""
    names = (f"{first} {last}" for first in first_names() for last in last_names(kind))
    return tuple(name for name in names if pool_of(name) == pool)


def make_world(rng: random.Random, pool: str, entities: int, words: set[str] | None = None) -> World:
    """A world of about `entities` entities with facts and passages, named by `words` alone if given."""
    members: list[Entity] = []
    for kind in KIND_SHARES:
        names = names_in_pool(pool, kind)
        names = names if words is None else tuple(name for name in names if words.issuperset(name.split()))
        members += _members(rng, names, kind, entities)
    world = World(members)
    of_kind = {kind: [each for each in world.entities if each.kind == kind] for kind in KIND_SHARES}
    for each in world.entities:
        relations = [relation for relation in RELATIONS if relation.subject == each.kind]
        world.facts[each] = {r: _another(rng, of_kind[r.object], each) for r in relations}
        world.phrases[each] = {r: _varied(rng, r.passage_phrases, STATED_OTHERWISE) for r in relations}
        world.texts[each] = tuple(_text(rng, world, each, page) for page in range(PAGES))
    return world


def practice_world(seed: int) -> World:
    """A world for demonstrations, large enough to confuse names; it shares none with the splits' worlds."""
    rng = random.Random(f"practice {seed}")
    words = {word for kind in KIND_SHARES for word in rng.sample(last_names(kind), PRACTICE_LAST_NAMES)}
    words |= set(rng.sample(first_names(), PRACTICE_FIRST_NAMES))
    return make_world(rng, "practice", PRACTICE_ENTITIES, words)


def _members(rng: random.Random, names: Sequence[str], kind: str, entities: int) -> list[Entity]:
    count = round(KIND_SHARES[kind] * entities)
    pairs = round(NAMESAKES * count)
    members = []
    for place, name in enumerate(rng.sample(names, count - pairs)):
        first, second = rng.sample(language.EPITHETS[kind], 2)
        members.append(Entity(name, kind, first, has_namesake=place < pairs))
        if place < pairs:
            members.append(Entity(name, kind, second, has_namesake=True))
    return members


def _another(rng: random.Random, entities: Sequence[Entity], one: Entity) -> Entity:
    while (other := rng.choice(entities)).name == one.name:
        pass
    return other


def _varied(rng: random.Random, ways: tuple[str, str], otherwise: float) -> str:
    return ways[rng.random() < otherwise]


def _text(rng: random.Random, world: World, entity: Entity, page: int) -> str:
    """An opening, then in any order the facts of this page, and a remark or a mention of someone else."""
    pronoun = language.PRONOUNS[entity.kind]
    facts = [(relation, other) for relation, other in world.facts[entity].items() if relation.page == page]
    sentences = [f"{pronoun} {world.phrases[entity][relation]} {other.mention}." for relation, other in facts]
    stranger = _another(rng, world.entities, entity)
    mention = rng.choice(language.MENTIONS).format(pronoun=pronoun, o=stranger.mention)
    sentences.append(rng.choice((mention, rng.choice(language.REMARKS[entity.kind]))))
    rng.shuffle(sentences)
    opening = language.OPENINGS[entity.kind][page].format(s=entity.mention, e=entity.epithet)
    return " ".join([opening, *sentences])


def ask(rng: random.Random, world: World, hops: int, count: int) -> list[Chain]:
    """`count` different questions of `hops` hops; no name occurs twice in a chain.

    Raises DataError if repeated draws do not find that many.
    """
    chains: dict[tuple[Entity, tuple[Relation, ...]], Chain] = {}
    for _ in range(30 * count + 100):
        if len(chains) == count:
            return list(chains.values())
        chain = _walk(rng, world, rng.choice(world.entities), hops)
        if len({each.name for each in (chain.start, *chain.entities)}) == hops + 1:
            chains.setdefault((chain.start, chain.path), chain)
    entities = len(world.entities)
    raise DataError(f"{entities} entities hold under {count} {hops}-hop questions: raise --passages")


def _walk(rng: random.Random, world: World, start: Entity, hops: int) -> Chain:
    path: list[Relation] = []
    phrases: list[str] = []
    entities = [start]
    for _ in range(hops):
        relation = rng.choice(list(world.facts[entities[-1]]))
        path.append(relation)
        phrases.append(_varied(rng, relation.question_phrases, ASKED_OTHERWISE))
        entities.append(world.facts[entities[-1]][relation])
    what = " of ".join(f"the {phrase}" for phrase in reversed(phrases))
    word = "Who" if path[-1].object == "person" else "What"
    text = f"{word} is {what} of {start.mention}?"
    return Chain(text, start, tuple(path), tuple(phrases), tuple(entities[1:]))


def build_world(
    seed: int,
    passages: int = 20000,
    train: int | None = None,
    validation: int = 100,
    test: int = 500,
    hops: Sequence[int] = HOPS,
) -> MiniWorld:
    """Three worlds with disjoint names over one corpus of about `passages` passages.

    `train` questions in all (None: three per ten passages) of those `hops` that are in TRAIN_SHARES;
    `validation` and `test` questions per hop count. Raises DataError if the passages are too few, or too many
    for the names.
    """
    worlds = {split: _split_world(seed, split, passages) for split in SPLIT_SHARES}
    corpus, ids = _corpus(worlds)
    counts = {
        "train": _shared_out(3 * passages // 10 if train is None else train, hops),
        "validation": dict.fromkeys(hops, validation),
        "test": dict.fromkeys(hops, test),
    }
    chains = draw_splits("questions", seed, counts, lambda rng, split, h, n: ask(rng, worlds[split], h, n))
    questions = {split: [_question(chain, ids) for chain in drawn] for split, drawn in chains.items()}
    return MiniWorld(corpus, questions, worlds)


def draw_splits(
    what: str,
    seed: int,
    counts: Mapping[str, Mapping[Group, int]],
    draw: Callable[[random.Random, str, Group, int], list[Drawn]],
) -> dict[str, list[Drawn]]:
    """The questions that `draw` gives for each split, so many of each group, in an order set by the seed."""
    splits = {}
    for split, groups in counts.items():
        rng = random.Random(f"{split} {what} {seed}")
        splits[split] = [each for group, count in groups.items() for each in draw(rng, split, group, count)]
        rng.shuffle(splits[split])
    return splits


def _shared_out(total: int, hops: Sequence[int]) -> dict[int, int]:
    """Training questions for each hop count, `total` together, by TRAIN_SHARES; evenly if it has none."""
    shares = {h: TRAIN_SHARES[h] for h in hops if h in TRAIN_SHARES} or dict.fromkeys(hops, 1.0)
    counts = {h: int(total * share / sum(shares.values())) for h, share in shares.items()}
    counts[min(counts)] += total - sum(counts.values())
    return counts


def _split_world(seed: int, split: str, passages: int) -> World:
    share = SPLIT_SHARES[split]
    entities = round(passages * share / PAGES)
    largest = int(min(len(names_in_pool(split, kind)) / part for kind, part in KIND_SHARES.items()))
    if not SMALLEST_WORLD <= entities <= largest:
        fewest = max(SMALLEST_WORLD * PAGES / part for part in SPLIT_SHARES.values())
        limits = f"(ask for {round(fewest)} to {int(largest * PAGES / share)} passages)"
        needs = f"it needs {SMALLEST_WORLD} to {largest} {limits}"
        raise DataError(f"the {split} world would have {entities} entities; {needs}")
    return make_world(random.Random(f"{split} world {seed}"), split, entities)


def _corpus(worlds: dict[str, World]) -> tuple[list[Row], dict[tuple[Entity, int], str]]:
    """All passages as rows, and the id of each (entity, page)."""
    pages = [(each, page, w) for w in worlds.values() for each in w.entities for page in range(PAGES)]
    pages.sort(key=lambda page: shuffling(page[2].contents(*page[:2])))
    ids = {(entity, page): f"{ID_PREFIX}{i:05d}" for i, (entity, page, _) in enumerate(pages)}
    rows = [
        {"id": ids[e, page], "title": e.title, "text": w.texts[e][page], "contents": w.contents(e, page)}
        for e, page, w in pages
    ]
    return rows, ids


def shuffling(text: str) -> bytes:
    """The key to sort passages by: neither their order nor their ids tell then which split each serves."""
    return hashlib.sha256(text.encode()).digest()


def _question(chain: Chain, ids: dict[tuple[Entity, int], str]) -> Question:
    hops = len(chain.path)
    support = [ids[e, relation.page] for e, relation in zip(chain.subjects, chain.path, strict=True)]
    steps = [
        {
            "question": f"{chain.start.mention if hop == 0 else f'#{hop}'} >> {relation.name}",
            "answer": chain.entities[hop].mention,
            "support_title": chain.subjects[hop].title,
            "support_id": support[hop],
        }
        for hop, relation in enumerate(chain.path)
    ]
    metadata = {
        "source": "mini_world",
        "hops": hops,
        "type": f"{hops}hop",
        "supporting_titles": [subject.title for subject in chain.subjects],
        "supporting_ids": support,
        "question_decomposition": steps,
    }
    # As in MuSiQue an id names the single facts that were chained: passage and relation numbers.
    pairs = zip(support, chain.path, strict=True)
    facts = [f"{int(page.removeprefix(ID_PREFIX))}{RELATIONS.index(each):02d}" for page, each in pairs]
    return Question(f"{hops}hop__{'_'.join(facts)}", chain.text, chain.entities[-1].golden_answers, metadata)


def hops_option(least: int, default: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The option --hops: hop counts from `least` to 4, separated by commas, as an ascending tuple."""

    def parse(_: click.Context, __: click.Parameter, value: str) -> tuple[int, ...]:
        parts = [part.strip() for part in value.split(",")]
        if not all(part.isdigit() and least <= int(part) <= max(HOPS) for part in parts):
            raise click.BadParameter(f"{value!r}: give numbers from {least} to {max(HOPS)}, with commas")
        return tuple(sorted({int(part) for part in parts}))

    return click.option("--hops", default=default, show_default=True, callback=parse, help="Hop counts.")


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the files.")
@click.option("--seed", default=0, show_default=True, help="Same seed, same bytes.")
@click.option("--passages", default=20000, show_default=True, help="Passages in the one corpus, about.")
@click.option("--train", type=click.IntRange(1), help="Questions in all.  [default: three per ten passages]")
@click.option("--validation", default=100, show_default=True, type=click.IntRange(1), help="Per hop count.")
@click.option("--test", default=500, show_default=True, type=click.IntRange(1), help="Per hop count.")
@hops_option(least=2, default="2,3,4")
def main(
    out: Path, seed: int, passages: int, train: int | None, validation: int, test: int, hops: tuple[int, ...]
) -> None:
    """Make a small world of invented entities: a corpus and multi-hop questions about it.

    Example: python -m research.datasets.mini.world --out data/mini_world
    """
    world = build_world(seed, passages, train, validation, test, hops)
    world.write(out)
    click.echo(f"{out / 'corpus.jsonl'}: {len(world.corpus)} passages")
    for split, questions in world.questions.items():
        click.echo(f"{out / split}.questions.jsonl: {len(questions)} questions ({hop_counts(questions)})")


if __name__ == "__main__":
    main()
