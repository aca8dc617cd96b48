"""Analysis: a text to the terms that BM25 counts, as Lucene's EnglishAnalyzer does it.

Words by the rules of Unicode's annex 29 (StandardTokenizer), the possessive 's off, lower case, Lucene's 33
stop words out, Porter's stemmer. BRIGHT and Anserini analyse so, and scores compare only over equal terms.

Known differences, all rare in English: words of more than 255 characters stay whole, Hebrew words lose the
quotation marks that belong to them, "#️⃣" is no word, and "yy" before -ing stays.
"""

import re
import threading

import regex
import Stemmer

STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be but by for if in into is it no not of on or such that the their then there "
        "these they this to was will with",
    )
)
MOST_CACHED = 1_000_000  # distinct words; some 150 MB

# A word: letters, which :.' may join, and numbers, which ,;.' may join, with underscores anywhere. It begins
# with no underscore that follows another: else a long line of them alone would be looked through from each.
_WORD = r"(?:(?<!{under}){under}+)?{core}(?:{under}+{core})*{under}*"
_MIXED = r"(?:{letters}(?:{mid_letter}{letters})*|{digits}(?:{mid_number}{digits})*)+"
_ASCII_MIXED = _MIXED.format(letters="[a-z]+", mid_letter="[:.']", digits="[0-9]+", mid_number="[,;.']")
_ASCII = re.compile(_WORD.format(under="_", core=_ASCII_MIXED))  # far quicker than the one for all scripts


def _unicode_words() -> "regex.Pattern[str]":
    """The same for any script, with marks after any character, and what has no spaces between words: Han and
    Hiragana by the character, Thai and its like by the run, each emoji.
    """
    marks = r"[\p{WB=Extend}\p{WB=Format}\p{WB=ZWJ}]*"
    mid_both = r"\p{WB=MidNumLet}\p{WB=Single_Quote}"
    mixed = _MIXED.format(
        letters=rf"(?:[\p{{WB=ALetter}}\p{{WB=Hebrew_Letter}}]{marks})+",
        mid_letter=rf"[:\p{{WB=MidLetter}}{mid_both}]{marks}",
        digits=rf"(?:\p{{WB=Numeric}}{marks})+",
        mid_number=rf"[\p{{WB=MidNum}}{mid_both}]{marks}",
    )
    core = rf"(?:{mixed}|(?:\p{{WB=Katakana}}{marks})+)"
    others = (
        rf"[\p{{Script=Han}}\p{{Script=Hiragana}}]{marks}",
        rf"(?:\p{{LB=SA}}{marks})+",
        r"\p{WB=Regional_Indicator}{2}",
        rf"\p{{Extended_Pictographic}}{marks}(?:(?<=\u200d)\p{{Extended_Pictographic}}{marks})*",
    )
    return regex.compile("|".join((_WORD.format(under=r"\p{WB=ExtendNumLet}", core=core), *others)))


_UNICODE = _unicode_words()
# A vowel and later a consonant: the measure above 0 that most of Porter's rules ask of what they leave.
_MEASURED = re.compile("[aeiou][^aeiou]|(?<=[^aeiou])y[^aeiou]")
_VOWEL = re.compile("[aeiou]|(?<=[^aeiou])y")
_DOUBLED = re.compile(
    r"(.*([^aeiouybdfglmnprstz]))\2(?:ed|ing)s?"
)  # the library halves bb dd ff gg mm nn pp rr tt
_BLI_LOGI = re.compile("(.*)(bl|log)(?:[iy](?:ed|ing)?s?|ies)")


def lower(text: str) -> str:
    """Lower case by the character, as Java does it: no final sigma, no dot above that stays behind.

    `lower(lower(text)) == lower(text)`.
    """
    return text.lower() if text.isascii() else text.replace("İ", "i").replace("Σ", "σ").lower()


def words(text: str) -> list[str]:
    """The words of a text in their order, in lower case. Takes any string."""
    text = lower(text)
    found: list[str] = (_ASCII if text.isascii() else _UNICODE).findall(text)
    return found


class Analyzer:
    """Texts to terms. Safe to use from many threads."""

    def __init__(self) -> None:
        self._terms = _Terms()

    def terms(self, text: str) -> list[str]:
        """The terms of a text in their order, repeated where they are; empty for one of stop words alone."""
        return list(filter(None, map(self._terms.__getitem__, words(text))))

    def term(self, word: str) -> str:
        """The term of one of `words`, "" for a stop word."""
        return self._terms[word]


class _Terms(dict[str, str]):
    """word -> term, or "" for a stop word; each distinct word is stemmed when it is first asked for."""

    def __init__(self) -> None:
        self._stemmer = Stemmer.Stemmer("porter", 0)  # 0: no cache of its own
        self._lock = threading.Lock()

    def __missing__(self, word: str) -> str:
        with self._lock:  # the stemmer must not be used by two threads
            if len(self) >= MOST_CACHED:
                self.clear()
            term = self[word] = self._stem(word[:-2] if word.endswith(("'s", "’s", "＇s")) else word)
        return term

    def _stem(self, word: str) -> str:
        if word in STOP_WORDS:
            return ""
        if len(word) <= 2:
            return word  # Porter's paper would leave nothing of "s"; his program leaves such words alone
        stem: str = self._stemmer.stemWord(_rules_of_the_program(word))
        return stem


def _rules_of_the_program(word: str) -> str:
    """Porter's program, and so Lucene, has rules that the library's "porter" lacks: bli -> ble, logi -> log,
    by which "possibly" meets "possible" and "psychology" "psychological"; and it halves any doubled consonant
    before -ed and -ing but l, s and z, in "trekking" and "revved" as in "hopping".
    """
    if doubled := _DOUBLED.fullmatch(word):
        return doubled[1] if _VOWEL.search(doubled[1]) else word
    if (found := _BLI_LOGI.fullmatch(word)) and _MEASURED.search(found[1]):
        return found[1] + {"bl": "ble", "log": "log"}[found[2]]
    return word
