"""Texts that say the same in nearly the same words: equal, edited, cut short, or quoted inside a longer text.

A text is compared as the set of its shingles, each SHINGLE words in a row, after case, punctuation, links and
variants of letters are normalised away. Two measures:

  overlap  |A & B| / max(min(|A|, |B|), LEAST)   the share of the smaller text that stands in the larger one
  jaccard  |A & B| / |A | B|                     1 only for equal sets

The overlap (Szymkiewicz-Simpson's coefficient) also finds a text that was cut, quoted or added to, where
the Jaccard index falls with the lengths. LEAST keeps a text of a few words from matching by chance.
"""

import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from datasketch import MinHash, MinHashLSH
from tqdm import tqdm

SHINGLE = 3
LEAST = 10
PERMUTATIONS = 128
BAR_PAUSE_S = 0.1 if sys.stderr.isatty() else 10  # in a log file a line every ten seconds
LINK = re.compile(r"https?://[^\s)>\]]+")
WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Match:
    """The text most similar to another: its name, the overlap, and whether the words are identical."""

    name: str
    overlap: float
    exact: bool


def words(text: str) -> list[str]:
    """The words that are compared."""
    return WORD.findall(LINK.sub(" ", unicodedata.normalize("NFKC", text)).casefold())


def shingles(tokens: list[str]) -> set[str]:
    """Every SHINGLE words in a row; fewer words are one shingle, no words none."""
    starts = range(max(len(tokens) - SHINGLE + 1, min(len(tokens), 1)))
    return {" ".join(tokens[start : start + SHINGLE]) for start in starts}


class KnownTexts:
    """Texts to look others up in by overlap; every shingle is counted, so for thousands, not millions."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._names = list(texts)
        self._sizes: list[int] = []
        self._holders: dict[str, list[int]] = {}
        self._exact: dict[str, str] = {}
        for number, (name, text) in enumerate(texts.items()):
            tokens = words(text)
            runs = shingles(tokens)
            self._sizes.append(len(runs))
            for run in runs:
                self._holders.setdefault(run, []).append(number)
            if tokens:
                self._exact.setdefault(" ".join(tokens), name)

    def most_like(self, text: str) -> Match | None:
        """The text of the largest overlap, the first of several; None if no shingle is shared."""
        tokens = words(text)
        if same := self._exact.get(" ".join(tokens)):
            return Match(same, 1.0, exact=True)
        runs = shingles(tokens)
        shared = Counter(number for run in runs for number in self._holders.get(run, ()))
        overlaps = {n: count / max(min(len(runs), self._sizes[n]), LEAST) for n, count in shared.items()}
        if not overlaps:
            return None
        best = min(overlaps, key=lambda n: (-overlaps[n], n))
        return Match(self._names[best], overlaps[best], exact=False)


def jaccard(first: str, second: str) -> float:
    """The share of their shingles that two texts have in common; 0 for texts without words."""
    one, other = shingles(words(first)), shingles(words(second))
    return len(one & other) / len(one | other) if one or other else 0.0


def similar_pairs(texts: Sequence[str], threshold: float) -> Iterator[tuple[int, int, float]]:
    """(place, earlier place, Jaccard index) of the pairs at `threshold` or above.

    MinHash signatures in an LSH index propose pairs (Broder 1997), leaning to too many; each is then counted.
    """
    index = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS, weights=(0.1, 0.9))
    for place, text in enumerate(tqdm(texts, desc="comparing", unit=" questions", mininterval=BAR_PAUSE_S)):
        runs = shingles(words(text))
        if not runs:
            continue
        signature = MinHash(num_perm=PERMUTATIONS)
        signature.update_batch([run.encode() for run in runs])
        for earlier in sorted(index.query(signature)):
            similarity = jaccard(text, texts[earlier])
            if similarity >= threshold:
                yield place, earlier, similarity
        index.insert(place, signature)


def firsts_of_groups(size: int, pairs: Iterable[tuple[int, int]]) -> list[int]:
    """For each place the first of its group; places joined in pairs are one group (union-find)."""
    parents = list(range(size))

    def first_of(place: int) -> int:
        while parents[place] != place:
            parents[place] = place = parents[parents[place]]
        return place

    for one, other in pairs:
        first, second = sorted((first_of(one), first_of(other)))
        parents[second] = first
    return [first_of(place) for place in range(size)]
