"""The mini world's text encoder: TF-IDF vectors, one dimension for each word of its passages.

A sentence-transformers model like any other (`StaticEmbedding`), a thousand times faster than a transformer
on a CPU. It matches words, not meanings: a query finds what shares its rare words, and words that no passage
uses count for nothing. Saves a folder for `retriever_server build --encoder`:

    python -m research.datasets.mini.encoder --out DIR
"""

import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from research.datasets.mini.language import PAGES, name_words
from research.datasets.mini.world import make_world
from research.files import filling

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

REFERENCE_ENTITIES = 3000  # of the world in which words are counted
# In a larger world names would be rarer still, and its other words would not.
NAME_WEIGHT = 1.15
UNKNOWN = "[unknown]"


def split_words(text: str) -> list[str]:
    """Lower-case words without punctuation."""
    return re.findall(r"\w+", text.lower())


def rarities(texts: Sequence[str], words: Iterable[str]) -> dict[str, float]:
    """The inverse document frequency of each word of the texts, and of `words`, in alphabetical order."""
    counts = Counter(word for text in texts for word in set(split_words(text)))
    return {word: math.log(len(texts) / max(counts[word], 1)) for word in sorted({*counts, *words})}


@cache
def word_weights() -> dict[str, float]:
    """The weight of each word of the world's passages, in the order of the dimensions; always the same."""
    world = make_world(random.Random("reference"), "practice", REFERENCE_ENTITIES)
    texts = [world.contents(entity, page) for entity in world.entities for page in range(PAGES)]
    names = {word.lower() for word in name_words()}
    weights = rarities(texts, names)
    return {word: weight * NAME_WEIGHT if word in names else weight for word, weight in weights.items()}


@cache
def _dimensions() -> tuple[dict[str, int], np.ndarray]:
    """The dimension of each word, and the weight of each dimension."""
    weights = word_weights()
    return {word: place for place, word in enumerate(weights)}, np.fromiter(weights.values(), np.float32)


def encode(texts: list[str]) -> np.ndarray:
    """float32 (texts, words), each row of length 1, or 0 if no word is known. Equal to the saved model's."""
    dimensions, weights = _dimensions()
    counts = np.zeros((len(texts), len(weights)), np.float32)
    for row, text in zip(counts, texts, strict=True):
        for word in split_words(text):
            if word in dimensions:
                row[dimensions[word]] += 1
    vectors = counts * weights
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


def encoder_of(weights: dict[str, float]) -> "SentenceTransformer":
    """A model with one dimension for each word, in which it weighs `weights[word]`."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    vocabulary = {word: place for place, word in enumerate([*weights, UNKNOWN])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\W+"), "removed")
    table = np.diag(np.fromiter([*weights.values(), 0.0], np.float32))[:, :-1].copy()
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=table)], device="cpu")


def save_encoder(weights: dict[str, float], out: Path) -> None:
    """Write the model of these words as a folder, which appears whole. Raises DataError."""
    model = encoder_of(weights)
    with filling(out) as scratch:
        model.save(str(scratch), create_model_card=False)
    click.echo(f"{len(weights)} words, saved in {out}")


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="New folder.")
def main(out: Path) -> None:
    """Save the encoder as a sentence-transformers folder.

    Example: python -m research.datasets.mini.encoder --out cache/encoder
    """
    save_encoder(word_weights(), out)


if __name__ == "__main__":
    main()
