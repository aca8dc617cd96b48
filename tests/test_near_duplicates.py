"""Near-duplicates: measures, MinHash against counting, real questions of BRIGHT."""

import json
import random

from hypothesis import given, settings
from hypothesis import strategies as st
from stack_rows import prose

from research.datasets.stack_exchange.near_duplicates import (
    KnownTexts,
    firsts_of_groups,
    jaccard,
    similar_pairs,
    words,
)


def test_questions_of_bright_are_found_again_after_edits_and_others_are_not(shared_rows):
    rows = [json.loads(line) for line in (shared_rows / "bright.questions.jsonl").open()]
    known = KnownTexts({each["id"]: each["question"] for each in rows})
    draw = random.Random(0)
    sites = [each for each in rows if each["metadata"]["task"] in ("biology", "economics", "stackoverflow")]
    found = 0
    for each in sites:
        text = [word for word in each["question"].split() if draw.random() > 0.1]
        match = known.most_like(" ".join(text + [prose(("noise", each["id"]), 100)]))
        found += match is not None and match.overlap >= 0.3 and match.name == each["id"]
    assert found >= 0.99 * len(sites)
    passages = (shared_rows / "hotpotqa.corpus.jsonl").open()
    strangers = [json.loads(line)["contents"] for line in passages][:1000]
    matches = [match for text in strangers if (match := known.most_like(text)) is not None]
    assert matches and max(match.overlap for match in matches) < 0.3


@settings(max_examples=100)
@given(st.text(max_size=80), st.text(max_size=80))
def test_measures_are_bounded_and_a_text_is_most_like_itself(text, other):
    assert 0 <= jaccard(text, other) == jaccard(other, text) <= 1
    match = KnownTexts({"other": other, "text": text}).most_like(text)
    if not words(text):
        assert match is None
    else:
        assert match is not None and match.exact and match.overlap == 1


def test_minhash_finds_the_pairs_that_counting_finds():
    draw, texts = random.Random(0), [prose(number) for number in range(30)]
    for place in range(20):
        text = texts[place].split()
        for at in draw.sample(range(len(text)), draw.randrange(1, 8)):
            text[at] = "edited"
        texts.append(" ".join(text))
    counted = {
        (place, earlier)
        for place in range(len(texts))
        for earlier in range(place)
        if jaccard(texts[place], texts[earlier]) >= 0.5
    }
    assert len(counted) > 5
    assert {(place, earlier) for place, earlier, _ in similar_pairs(texts, 0.5)} == counted


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12))
def test_groups_are_named_by_their_first(pairs):
    sets = [{place} for place in range(10)]
    for one, other in pairs:
        joined = sets[one] | sets[other]
        for place in joined:
            sets[place] = joined
    assert firsts_of_groups(10, pairs) == [min(sets[place]) for place in range(10)]
