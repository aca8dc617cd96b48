"""A generated world for learning to rewrite queries: questions in lay words, passages in experts' terms.

Everything follows from the seed; nothing is downloaded. Writes corpus.jsonl and SPLIT.tasks.jsonl (the form
of research/datasets/rewriting_tasks.py) for the splits train, validation and test:

    python -m research.datasets.mini_rewriting.world --out DIR --seed 0 --passages 8000

A question names two or three concepts of one field in lay words. Those passages are relevant that name all of
these by the terms of the school that the field follows (datasets/mini_rewriting/language.py). What makes
searching hard: for every relevant combination there is a passage with the terms of another school; others
name one of its concepts; and in stories the lay words mean the things themselves. Expert passages sometimes
mention a lay wording, so that the question's own words find something now and then.

Combinations of concepts are held out. A hash deals them into train, validation, test and practice
(`pool_of_concepts`), whatever the seed, so no question shares its combination with another split or a
demonstration. The concepts and the words for them are the same everywhere, except for the source
"unseen_concepts" (in validation and test alone): these concepts occur in demonstrations and in no training
question, so no reward reveals their terms.
"""

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from pathlib import Path

import click

from research.datasets.json_rows import write_splits
from research.datasets.mini import world as mini_world
from research.datasets.mini_rewriting import language
from research.datasets.mini_rewriting.language import FIELDS, SCHOOLS, Concept, concepts, concepts_of
from research.datasets.rewriting_tasks import RewritingTask
from research.errors import DataError

SOURCES = {"two_concepts": 2, "three_concepts": 3, "unseen_concepts": 2}
TRAIN_SHARES = {"two_concepts": 0.6, "three_concepts": 0.4}
RELEVANT = (1, 2, 2, 3)  # passages about a combination, one of these numbers
GLOSSED = 0.5  # of the concepts of expert passages: one of their lay wordings is mentioned too
STORIES_SHARE = 0.25  # of the passages that no question needs
ID_PREFIX = "mini_r"

Combination = tuple[Concept, ...]


@dataclass(frozen=True)
class Topic:
    """A combination of concepts that one question asks about."""

    source: str
    concepts: Combination
    question: str


@dataclass(frozen=True)
class MiniRewritingWorld:
    """What is written to disk, and the topics of each split in the order of its tasks."""

    corpus: list[dict[str, str]]
    tasks: dict[str, list[RewritingTask]]
    topics: dict[str, list[Topic]]

    def write(self, folder: Path) -> None:
        """Write corpus.jsonl and a SPLIT.tasks.jsonl per split. Raises DataError."""
        splits = {split: map(vars, tasks) for split, tasks in self.tasks.items()}
        write_splits(folder, "tasks", splits, self.corpus)


def pool_of_concepts(combination: Combination) -> str:
    """The pool that owns a combination: "train", "validation", "test" or "practice"."""
    name = " ".join(sorted(each.root for each in combination))
    reserved = [each.reserved for each in combination]
    if all(reserved):
        return "validation" if zlib.crc32(name.encode()) % 4 == 0 else "test"
    return "practice" if any(reserved) else mini_world.pool_of(name)


def right_rewriting(combination: Combination) -> str:
    """The query that finds the passages relevant to a question about these concepts."""
    return " ".join(each.right_term for each in combination)


def ask_in_lay_words(rng: random.Random, combination: Sequence[Concept]) -> str:
    """A question in lay words that names the concepts in this order."""
    scene = rng.choice(combination[0].field.scenes)
    wordings = dict(zip("abc", (rng.choice(each.wordings) for each in combination), strict=False))
    return f"{scene}, {rng.choice(language.QUESTIONS[len(combination)]).format(**wordings)}"


def draw_topics(rng: random.Random, split: str, source: str, count: int) -> list[Topic]:
    """`count` topics of different combinations. Raises DataError if there are not that many."""
    reserved = source == "unseen_concepts"
    owned = [
        combination
        for field in FIELDS
        for combination in combinations(concepts_of(field), SOURCES[source])
        if {each.reserved for each in combination} == {reserved} and pool_of_concepts(combination) == split
    ]
    if count > len(owned):
        raise DataError(f"{split} cannot have {count} questions of {source}: {len(owned)} at most")
    shuffled = [rng.sample(combination, len(combination)) for combination in rng.sample(owned, count)]
    return [Topic(source, tuple(each), ask_in_lay_words(rng, each)) for each in shuffled]


def build_rewriting_world(
    seed: int, passages: int = 8000, train: int = 600, validation: int = 40, test: int = 100
) -> MiniRewritingWorld:
    """One corpus of `passages` passages and the tasks of three splits.

    `train` questions in all, divided by TRAIN_SHARES; `validation` and `test` of each source. Raises
    DataError if there are not that many combinations, or too few passages for them.
    """
    counts = {
        "train": {source: round(train * share) for source, share in TRAIN_SHARES.items()},
        "validation": dict.fromkeys(SOURCES, validation),
        "test": dict.fromkeys(SOURCES, test),
    }
    topics = mini_world.draw_splits("topics", seed, counts, draw_topics)
    everything = list(chain.from_iterable(topics.values()))
    corpus = _corpus(random.Random(f"passages {seed}"), everything, passages)
    return MiniRewritingWorld(corpus, _tasks(topics, corpus), topics)


def _corpus(rng: random.Random, topics: Sequence[Topic], passages: int) -> list[dict[str, str]]:
    """All passages as rows; those that no topic needs are about single concepts, or stories."""
    texts: list[str] = []
    for topic in topics:
        right = topic.concepts[0].field.school
        wrong = rng.choice([school for school in SCHOOLS if school != right])
        schools = [right] * rng.choice(RELEVANT) + [wrong]
        texts += [_expert(rng, topic.concepts, school) for school in schools]
    if len(texts) > passages:
        raise DataError(f"the questions need {len(texts)} passages, and --passages is {passages}")
    everything = concepts()
    while len(texts) < passages:
        one = rng.choice(everything)
        if rng.random() < STORIES_SHARE:
            texts.append(_story(rng, rng.sample(everything, 2)))
        else:
            texts.append(_expert(rng, (one,), rng.choice((one.field.school, *SCHOOLS))))
    texts.sort(key=mini_world.shuffling)
    return [{"id": f"{ID_PREFIX}{i:05d}", "contents": text} for i, text in enumerate(texts)]


def _expert(rng: random.Random, combination: Combination, school: str) -> str:
    """A passage that names all concepts by the terms of one school, now and then with a lay wording."""
    sentences = rng.sample(language.STATEMENTS, len(combination))
    sentences = [s.format(x=each.term(school)) for s, each in zip(sentences, combination, strict=True)]
    for place, each in enumerate(combination):
        if rng.random() < GLOSSED:
            sentences[place] += " " + language.GLOSS.format(x=rng.choice(each.wordings))
    sentences += rng.sample(language.ASIDES, rng.choice((1, 2)))
    rng.shuffle(sentences)
    return f"Notes from the {combination[0].field.name}\n{' '.join(sentences)}"


def _story(rng: random.Random, combination: Sequence[Concept]) -> str:
    sentences = zip(rng.sample(language.STORIES, len(combination)), combination, strict=True)
    return "A story\n" + " ".join(s.format(x=rng.choice(each.wordings)) for s, each in sentences)


def _tasks(topics: dict[str, list[Topic]], corpus: list[dict[str, str]]) -> dict[str, list[RewritingTask]]:
    """The task of each topic: every passage with the right terms of all its concepts is relevant."""
    texts = {row["id"]: row["contents"] for row in corpus}
    naming: dict[str, set[str]] = {}
    for name, text in texts.items():
        for word in text.replace(".", " ").split():
            naming.setdefault(word, set()).add(name)

    def task(split: str, number: int, topic: Topic) -> RewritingTask:
        gold = sorted(set.intersection(*(naming[each.right_term] for each in topic.concepts)))
        positives = tuple(texts[name] for name in gold)
        return RewritingTask(f"{split}_{number}", topic.question, positives, tuple(gold), source=topic.source)

    return {split: [task(split, i, topic) for i, topic in enumerate(each)] for split, each in topics.items()}


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the files.")
@click.option("--seed", default=0, show_default=True, help="Same seed, same bytes.")
@click.option("--passages", default=8000, show_default=True, help="Passages in the one corpus.")
@click.option("--train", default=600, show_default=True, type=click.IntRange(1), help="Questions in all.")
@click.option("--validation", default=40, show_default=True, type=click.IntRange(1), help="Per source.")
@click.option("--test", default=100, show_default=True, type=click.IntRange(1), help="Per source.")
def main(out: Path, seed: int, passages: int, train: int, validation: int, test: int) -> None:
    """Make a small world of invented concepts: a corpus, and questions whose words miss its words.

    Example: python -m research.datasets.mini_rewriting.world --out data/mini_rewriting_world
    """
    world = build_rewriting_world(seed, passages, train, validation, test)
    world.write(out)
    click.echo(f"{out / 'corpus.jsonl'}: {len(world.corpus)} passages")
    for split, tasks in world.tasks.items():
        click.echo(f"{out / split}.tasks.jsonl: {len(tasks)} questions")


if __name__ == "__main__":
    main()
