"""Which posts become training tasks: filters, a draw for each source, no duplicates, a dev set apart."""

import hashlib
import heapq
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from research.datasets.rewriting_tasks import RewritingTask
from research.datasets.stack_exchange.dump import Post
from research.datasets.stack_exchange.near_duplicates import (
    KnownTexts,
    firsts_of_groups,
    jaccard,
    similar_pairs,
    words,
)


@dataclass
class Tally:
    """What happened to every row: each was dropped for one reason or is a task.

    A removal is a post that says what another text says: its `partner`, a question of BRIGHT or a kept post.
    """

    read: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    removals: list[dict[str, Any]] = field(default_factory=list)

    def drop(self, reason: str) -> None:
        """Count a row that does not become a task."""
        self.dropped[reason] += 1

    def remove(self, post: Post, reason: str, partner: str, similarity: float) -> None:
        """Count and name a row that says what another text says."""
        self.drop(reason)
        removal = {"id": post.id, "where": post.where, "reason": reason, "partner": partner}
        self.removals.append(removal | {"similarity": round(similarity, 4)})


@dataclass(frozen=True)
class Filters:
    """The conditions that a post must meet; see the options of prepare_rqr."""

    most_chars: int
    least_words: int
    need_positives: bool
    bright: KnownTexts | None
    bright_overlap: float

    def kept(self, posts: Iterable[Post], tally: Tally) -> Iterator[Post]:
        """The posts that pass, without answers of too few words."""
        for post in posts:
            tally.read[post.source] += 1
            answers = tuple(each for each in post.positives if len(words(each)) >= self.least_words)
            post = replace(post, positives=answers)
            if reason := self._fault(post):
                tally.drop(reason)
            elif not self._in_bright(post, tally):
                yield post

    def _fault(self, post: Post) -> str | None:
        if post.has_image:
            return "image"
        if len(post.question) > self.most_chars:
            return "too_long"
        if len(words(post.question)) < self.least_words:
            return "near_empty"
        return "no_positives" if self.need_positives and not post.positives else None

    def _in_bright(self, post: Post, tally: Tally) -> bool:
        match = self.bright.most_like(post.question) if self.bright else None
        if match is None or not (match.exact or match.overlap >= self.bright_overlap):
            return False
        tally.remove(post, "bright_exact" if match.exact else "bright_near", match.name, match.overlap)
        return True


def draw(posts: Iterable[Post], most: int | None, seed: int, tally: Tally) -> list[Post]:
    """At most `most` posts of each source, drawn by the seed in whatever order they come, without copies.

    The rank of a question is a hash of seed and words: the lowest ranks of a source stay, and no others are
    held in memory. One that was pushed out cannot return, so only copies of what stays have to be noticed.
    """
    drawn: dict[tuple[str, int], Post] = {}
    ranks = defaultdict[str, list[int]](list)
    for post in posts:
        text = f"{seed}\n{' '.join(words(post.question))}"
        rank = int.from_bytes(hashlib.sha256(text.encode()).digest()[:12], "big")
        if same := drawn.get((post.source, rank)):
            tally.remove(post, "duplicate_exact", same.id, 1.0)
            continue
        drawn[post.source, rank] = post
        heapq.heappush(ranks[post.source], -rank)
        if most is not None and len(ranks[post.source]) > most:
            del drawn[post.source, -heapq.heappop(ranks[post.source])]
            tally.drop("over_cap")
    return list(drawn.values())


def without_duplicates(posts: Sequence[Post], threshold: float, tally: Tally) -> list[Post]:
    """The first post of each group of posts that are linked by pairs with a Jaccard index of `threshold`.

    The tally gets the index with the post that stays, which is below the threshold if others link the two.
    """
    texts = [" ".join(words(post.question)) for post in posts]
    pairs = ((place, earlier) for place, earlier, _ in similar_pairs(texts, threshold))
    kept = []
    for place, first in enumerate(firsts_of_groups(len(posts), pairs)):
        post = posts[place]
        if first == place:
            kept.append(post)
        else:
            reason = "duplicate_exact" if texts[place] == texts[first] else "duplicate_near"
            tally.remove(post, reason, posts[first].id, jaccard(texts[place], texts[first]))
    return kept


def split_tasks(
    tasks: Sequence[RewritingTask], dev: int, seed: int
) -> tuple[list[RewritingTask], list[RewritingTask]]:
    """(training, dev), both in the given order, with tasks that share a gold passage on one side.

    So dev may hold fewer than `dev` tasks: as many as whole groups fill.
    """
    owner: dict[str, int] = {}
    ids = ((place, name) for place, task in enumerate(tasks) for name in task.gold_ids)
    pairs = ((place, owner.setdefault(name, place)) for place, name in ids)
    members = defaultdict[int, list[int]](list)
    for place, first in enumerate(firsts_of_groups(len(tasks), pairs)):
        members[first].append(place)
    order = list(members.values())
    random.Random(seed).shuffle(order)
    drawn: set[int] = set()
    for group in order:
        if len(drawn) + len(group) <= dev:
            drawn.update(group)
    train = [task for place, task in enumerate(tasks) if place not in drawn]
    return train, [tasks[place] for place in sorted(drawn)]
