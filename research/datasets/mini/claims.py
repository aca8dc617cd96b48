"""Claims about the mini world, for fact verification: true, false, and about unknown entities.

    python -m research.datasets.mini.claims --out DIR --seed 0 --passages 20000

Writes the world's corpus.jsonl and SPLIT.claims.jsonl, in FEVER's form, for train, validation and test. A
false claim names another entity of the right kind; a claim that cannot be verified starts from an entity of
the practice pool, which no passage mentions.
"""

import random
from pathlib import Path
from typing import Any

import click

from research.datasets.json_rows import write_splits
from research.datasets.mini.world import Chain, World, ask, build_world, practice_world

LABELS = ("SUPPORTS", "REFUTES", "NOT ENOUGH INFO")
HOPS = (1, 2)


def claims(world: World, unknown: World, count: int, rng: random.Random) -> list[dict[str, Any]]:
    """`count` claims of each label, in random order."""
    rows = []
    for label in LABELS:
        source = unknown if label == "NOT ENOUGH INFO" else world
        for hops in HOPS:
            for chain in ask(rng, source, hops, count // len(HOPS) + count % len(HOPS) * (hops == 1)):
                rows.append(
                    {"claim": _statement(chain, label, rng, source), "label": label, "num_hops": hops}
                )
    rng.shuffle(rows)
    return [{"id": number, **row} for number, row in enumerate(rows)]


def _statement(chain: Chain, label: str, rng: random.Random, world: World) -> str:
    named = chain.entities[-1]
    if label == "REFUTES":
        others = [each for each in world.entities if each.kind == named.kind and each.name != named.name]
        named = rng.choice(others)
    what = chain.text.split(" is ", 1)[1].removesuffix("?")
    return f"{what[0].upper()}{what[1:]} is {named.mention}."


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the files.")
@click.option("--seed", default=0, show_default=True, help="Same seed, same bytes.")
@click.option("--passages", default=20000, show_default=True, help="Passages in the corpus, about.")
@click.option("--train", default=1000, show_default=True, type=click.IntRange(1), help="Claims per label.")
@click.option("--validation", default=50, show_default=True, type=click.IntRange(1), help="Per label.")
@click.option("--test", default=200, show_default=True, type=click.IntRange(1), help="Per label.")
def main(out: Path, seed: int, passages: int, train: int, validation: int, test: int) -> None:
    """Generate the mini world's corpus and claims about it.

    Example: python -m research.datasets.mini.claims --out cache/claims
    """
    world, unknown, splits = build_world(seed, passages, 1, 1, 1), practice_world(seed), {}
    for split, count in {"train": train, "validation": validation, "test": test}.items():
        splits[split] = claims(world.worlds[split], unknown, count, random.Random(f"{split} claims {seed}"))
    write_splits(out, "claims", splits, world.corpus)
    for split, rows in splits.items():
        click.echo(f"{split}: {len(rows)} claims")


if __name__ == "__main__":
    main()
