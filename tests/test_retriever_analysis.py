"""Analysis: the terms that Lucene's EnglishAnalyzer gives, for any string there is."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retriever_server.indexes.analysis import STOP_WORDS, Analyzer, lower, lucene_words

ANALYZER = Analyzer()
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=60)  # lone surrogates too
CHARACTERS = "aAbYyé.:,;'’_ 19\n-İΣß\u0301\u00ad\u200d漢かカทक한א\"😀👍🏽🇩"
TRICKY = st.text(st.sampled_from(list(CHARACTERS)), max_size=40)


@settings(max_examples=300)
@given(ANY_TEXT | TRICKY)
def test_any_string_has_terms_in_lower_case_and_no_stop_words(text: str) -> None:
    assert lower(lower(text)) == lower(text)
    assert lucene_words(text) == lucene_words(lower(text))
    terms = ANALYZER.terms(text)
    assert all(terms) and len(terms) <= len(lucene_words(text))
    assert not STOP_WORDS & {word for word in lucene_words(text) if ANALYZER[word]}
    assert ANALYZER.terms(f"{text}\n{text}") == terms * 2


@settings(max_examples=200)
@given(st.text(st.characters(max_codepoint=127), max_size=60))
def test_plain_text_has_the_same_words_beside_other_scripts(text: str) -> None:
    assert lucene_words(f"{text} é") == [*lucene_words(text), "é"]


@pytest.mark.parametrize("part", ["_", "a'", "1,", "bly", "é_", "a:", "é:", "\u0301", "ก", "😀\u200d"])
def test_a_run_of_100_000_is_looked_through_once(part: str) -> None:
    text = part * 100_000  # a quadratic pattern would not come back
    assert len(ANALYZER.terms(text)) <= 1


# What Lucene 9.5's EnglishAnalyzer gives, through Pyserini 0.22.1.
@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("The possibly possible psychology of as xs agreed", "possibl possibl psycholog xs agre"),
        ("biology apologies assembly assembled relational", "biologi apolog assembl assembl relat"),
        ("A:B a::b 1,000.5 o'neil Dog's DOG’S _a_b_ __", "a:b b 1,000.5 o'neil dog dog _a_b_"),
        ("ab'cd'ef 'x' x.y. ..x 1.a a.1 1,a 1'a a'1 A'S 's", "ab'cd'ef x x.y x 1 1 1 1 1 s"),
        ("a_b.c 3.14a a.b1.2 x'1 1'2 a__b a_ _1", "a_b.c 3.14a a.b1.2 x 1 1'2 a__b a_ _1"),
        ("漢字 あいう カタカナ ภาษาไทย 한국어 カ1 カa", "漢 字 あ い う カタカナ ภาษาไทย 한국어 カ 1 カ"),
        ("😀 x😀y ① Ⅳ ２３ x² H₂O 5½ no° µm", "😀 x 😀 y ⅳ ２３ x h o 5 µm"),
        ("İstanbul ΟΔΟΣ ΟΔΟΣ'S ẞ ǅ", "istanbul οδοσ οδοσ ß ǆ"),
        ("👍🏽 👨\u200d👩\u200d👧 🇩🇪🇫🇷 ©", "👍🏽 👨\u200d👩\u200d👧 🇩🇪 🇫🇷 ©"),
        ("e\u0301te\u0301 a\u00adb l·l a\u2024b ١٢٣٫٤", "e\u0301te\u0301 a\u00adb l·l a\u2024b ١٢٣٫٤"),
        ("", ""),
        ("To be, or not to be: that is it.", ""),
    ],
)
def test_terms_are_those_of_lucene(text: str, terms: str) -> None:
    assert ANALYZER.terms(text) == terms.split()


# By the rules of Porter's program, where the library's "porter" has others.
@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("trek treks trekking trekked trekkings trekking's", "trek trek trek trek trek trek"),
        ("revving yukked maccing va11ing naéééd", "rev yuk mac va1 naéééd"),
        ("hopping falling hissing buzzed embedding adding", "hop fall hiss buzz embed ad"),
        ("bckking hajj hajjs trekker", "bckking hajj hajj trekker"),
        ("assembly assemblies assemblied apologied logy blying", "assembl assembl assembl apolog logi bly"),
    ],
)
def test_stems_are_those_of_porters_program(text: str, terms: str) -> None:
    assert ANALYZER.terms(text) == terms.split()


def test_a_full_cache_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retriever_server.indexes.analysis.MOST_CACHED", 3)
    analyzer = Analyzer()
    text = "one two three four five one two three"
    assert analyzer.terms(text) == ANALYZER.terms(text)


def test_no_passage_is_without_terms(shared_rows: Path) -> None:
    for line in (shared_rows / "bright_answers.corpus.jsonl").read_text().splitlines():
        assert ANALYZER.terms(json.loads(line)["contents"])
