"""The mini world's text encoder: a random direction for each word of its passages, weighted by rarity.

A sentence-transformers model like any other (`StaticEmbedding`), a hundred times quicker than a transformer
on a CPU. It matches words, not meanings: a query finds what shares its rare words, and words that no passage
uses count for nothing. Saves a folder for `retriever_server build --encoder`:

    python -m data.mini_encoder --out DIR
"""

import math
import random
import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from data.folders import filling
from data.mini_language import PAGES, name_words
from data.mini_world import make_world

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

DIMENSION = 512
REFERENCE_ENTITIES = 3000  # of the world in which words are counted
UNKNOWN = "[unknown]"


def split_words(text: str) -> list[str]:
    """Lower-case words without punctuation."""
    return re.findall(r"\w+", text.lower())


@cache
def word_vectors() -> dict[str, np.ndarray]:
    """float32 (DIMENSION,) for each word of the world's passages; the same at every call.

    Random directions are nearly orthogonal, so the scalar product of two texts' sums counts the words they
    share, each with the square of its inverse document frequency.
    """
    world = make_world(random.Random("reference"), "practice", REFERENCE_ENTITIES)
    texts = [world.contents(entity, page) for entity in world.entities for page in range(PAGES)]
    counts = Counter(word for text in texts for word in set(split_words(text)))
    words = sorted({*counts, *(word.lower() for word in name_words())})
    directions = np.random.default_rng(0).standard_normal((len(words), DIMENSION)) / math.sqrt(DIMENSION)
    weights = [math.log(len(texts) / max(counts[word], 1)) for word in words]
    return dict(zip(words, (directions.T * weights).T.astype(np.float32), strict=True))


def encode(texts: list[str]) -> np.ndarray:
    """float32 (texts, DIMENSION), each row of length 1, or 0 if no word is known. Equal to the saved
    model's.
    """
    vectors, nothing = word_vectors(), np.zeros(DIMENSION, np.float32)
    sums = np.stack(
        [sum((vectors.get(word, nothing) for word in split_words(text)), nothing) for text in texts]
    )
    return sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-9)


def build_encoder() -> "SentenceTransformer":
    """The same vectors as a sentence-transformers model."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    vectors = word_vectors()
    vocabulary = {word: place for place, word in enumerate([*vectors, UNKNOWN])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\W+"), "removed")
    table = np.stack([*vectors.values(), np.zeros(DIMENSION, np.float32)])
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=table)], device="cpu")


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="New folder.")
def main(out: Path) -> None:
    """Save the encoder as a sentence-transformers folder.

    Example: python -m data.mini_encoder --out cache/encoder
    """
    model = build_encoder()
    with filling(out) as scratch:
        model.save(str(scratch), create_model_card=False)
    click.echo(f"{len(word_vectors())} words, {DIMENSION} dimensions, saved in {out}")


if __name__ == "__main__":
    main()
