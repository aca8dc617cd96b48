"""Analysis: from a text to the terms that BM25 counts, as Lucene's EnglishAnalyzer does it.

Words by the rules of Unicode's annex 29 (StandardTokenizer), without the possessive 's, in lower case,
without Lucene's 33 stop words, stemmed by Porter's stemmer. BRIGHT and Anserini analyse texts this way, and
scores are comparable only over equal terms.

By hand, because no Python library splits words or stems exactly like Lucene. Known differences, all rare in
English: words of more than 255 characters stay whole, Hebrew words lose the quotation marks that belong to
them, "#️⃣" is not a word, and "yy" before -ing stays.
"""

import re
import threading

import regex
import Stemmer

_STOP = (
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these "
    "they this to was will with"
)
STOP_WORDS = frozenset(_STOP.split())
MOST_CACHED = 1_000_000  # distinct words; some 150 MB

# A word: letters, which :.' may join, and numbers, which ,;.' may join, with underscores anywhere. It does
# not begin with an underscore that follows another, or a long line of them would be searched again from each.
_WORD = r"(?:(?<!{under}){under}+)?{core}(?:{under}+{core})*{under}*"
_MIXED = r"(?:{letters}(?:{mid_letter}{letters})*|{digits}(?:{mid_number}{digits})*)+"
_ASCII_MIXED = _MIXED.format(letters="[a-z]+", mid_letter="[:.']", digits="[0-9]+", mid_number="[,;.']")
_ASCII = re.compile(_WORD.format(under="_", core=_ASCII_MIXED))  # far faster than the one for all scripts


def _unicode_words() -> "regex.Pattern[str]":
    """The same for any script, with marks after any character, and for scripts without spaces between words.

    Those are Han and Hiragana, by the character; Thai and its like, by the run; and each emoji.
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
# A vowel and later a consonant: the measure above 0 that most of Porter's rules require of what they leave.
_MEASURED = re.compile("[aeiou][^aeiou]|(?<=[^aeiou])y[^aeiou]")
_VOWEL = re.compile("[aeiou]|(?<=[^aeiou])y")
# The library does bb dd ff gg mm nn pp rr tt.
_DOUBLED = re.compile(r"(.*([^aeiouybdfglmnprstz]))\2(?:ed|ing)s?")
_BLI_LOGI = re.compile("(.*)(bl|log)(?:[iy](?:ed|ing)?s?|ies)")


def lower(text: str) -> str:
    """Lower case by the character, like Java: no final sigma, no dot above that stays behind. Idempotent."""
    return text.lower() if text.isascii() else text.replace("İ", "i").replace("Σ", "σ").lower()


def lucene_words(text: str) -> list[str]:
    """The words of any text in their order, in lower case."""
    text = lower(text)
    return (_ASCII if text.isascii() else _UNICODE).findall(text)


class Analyzer(dict[str, str]):
    """A table from words to terms ("" for a stop word), filled as words appear. Thread-safe."""

    def __init__(self) -> None:
        self._stemmer = Stemmer.Stemmer("porter", 0)  # 0: no cache of its own
        self._lock = threading.Lock()

    def terms(self, text: str) -> list[str]:
        """The terms of a text in their order, with repetitions; empty for a text of stop words alone."""
        return list(filter(None, map(self.__getitem__, lucene_words(text))))

    def __missing__(self, word: str) -> str:
        with self._lock:  # the stemmer is not thread-safe
            if len(self) >= MOST_CACHED:
                self.clear()
            term = self[word] = self._term(word[:-2] if word.endswith(("'s", "’s", "＇s")) else word)
        return term

    def _term(self, word: str) -> str:
        if word in STOP_WORDS:
            return ""
        if len(word) <= 2:
            return word  # Porter's paper would leave nothing of "s"; his program leaves such words alone
        return self._stemmer.stemWord(_apply_program_rules(word))


def _apply_program_rules(word: str) -> str:
    """Apply the rules of Porter's program, and so Lucene, that the library's "porter" lacks.

    They are bli -> ble and logi -> log, by which "possibly" matches "possible" and "psychology" matches
    "psychological"; and one of two equal consonants before -ed and -ing is dropped (except l, s, z), in
    "trekking" and "revved" as in "hopping".
    """
    if doubled := _DOUBLED.fullmatch(word):
        return doubled[1] if _VOWEL.search(doubled[1]) else word
    if (match := _BLI_LOGI.fullmatch(word)) and _MEASURED.search(match[1]):
        return match[1] + {"bl": "ble", "log": "log"}[match[2]]
    return word
