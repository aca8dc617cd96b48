"""The mini rewriting world's text encoder: TF-IDF vectors as in mini/encoder.py, for `embedding_gain`.

A general encoder cannot tell the invented terms apart; this one knows every word that passages can hold, lay
words included. It is the same whatever the world's seed:

    python -m research.datasets.mini_rewriting.encoder --out DIR
"""

from pathlib import Path

import click

from research.datasets.mini.encoder import rarities, save_encoder
from research.datasets.mini_rewriting.language import SCHOOLS, concepts
from research.datasets.mini_rewriting.world import build_rewriting_world

REFERENCE_SEED = 0  # of the world in which words are counted


def term_weights() -> dict[str, float]:
    """The inverse document frequency of each word, in the order of the dimensions."""
    texts = [row["contents"] for row in build_rewriting_world(REFERENCE_SEED).corpus]
    return rarities(texts, (concept.term(school) for concept in concepts() for school in SCHOOLS))


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="New folder.")
def main(out: Path) -> None:
    """Save the encoder as a sentence-transformers folder.

    Example: python -m research.datasets.mini_rewriting.encoder --out cache/rewriting_encoder
    """
    save_encoder(term_weights(), out)


if __name__ == "__main__":
    main()
