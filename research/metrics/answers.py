"""Answer metrics: exact match, token F1, contained answer, each the best over the golden answers.

Normalisation is SQuAD's (lower case, no ASCII punctuation, no articles, single blanks), and F1 has HotpotQA's
rule that yes, no and noanswer must match exactly, as in the official scripts of HotpotQA, 2WikiMultiHopQA and
MuSiQue. It differs from those scripts in two ways. They treat any two texts that normalise to nothing ("A",
"The The", "*", no answer at all) as equal; here such an answer is right only if it equals the golden one
except for case and blanks, and no answer is never right. And texts that are equivalent in Unicode (composed
and decomposed letters) are equal.
"""

import math
import re
import string
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from research.episode.trajectory import Passage

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_ASCII_LOWER, _ASCII_PUNCTUATION = bytes(range(256)).lower(), string.punctuation.encode()
_ASCII_ARTICLES = {"a", "an", "the"}
_CLOSED_ANSWERS = {"yes", "no", "noanswer"}


def normalize_answer(text: str) -> str:
    """``The  Beatles!`` -> ``beatles``."""
    if text.isascii() and text.isprintable():  # then words are separated by blanks only
        words = text.encode().translate(_ASCII_LOWER, _ASCII_PUNCTUATION).decode().split()
        return " ".join([word for word in words if word not in _ASCII_ARTICLES])
    return normalize_any(text)


def normalize_any(text: str) -> str:
    """The same for any text, as in the official scripts except for Unicode forms; half as fast."""
    lowered = unicodedata.normalize("NFC", text).lower()
    return " ".join(_ARTICLES.sub(" ", lowered.translate(_PUNCTUATION)).split())


class AnswerScores(NamedTuple):
    """Each 0.0 to 1.0, the best over the golden answers."""

    em: float
    f1: float
    acc: float


def score_answer(prediction: str, golden_answers: Sequence[str]) -> AnswerScores:
    """Exact match, token F1 and contained answer; all 0.0 without a prediction or golden answers."""
    predicted = normalize_answer(prediction)
    if not predicted:  # no answer, or articles and punctuation alone: right as a whole or not at all
        text = _folded(prediction)
        return AnswerScores(*[float(bool(text) and text in map(_folded, golden_answers))] * 3)
    goldens = [form for form in map(normalize_answer, golden_answers) if form]
    return AnswerScores(
        em=float(predicted in goldens),
        f1=max((_f1(predicted, golden) for golden in goldens), default=0.0),
        acc=float(any(golden in predicted for golden in goldens)),
    )


def exact_match(prediction: str, golden_answers: Sequence[str]) -> float:
    """1.0 if the prediction equals a golden answer after normalisation, else 0.0."""
    return score_answer(prediction, golden_answers).em


def token_f1(prediction: str, golden_answers: Sequence[str]) -> float:
    """Harmonic mean of token precision and recall with the closest golden answer, 0.0 to 1.0."""
    return score_answer(prediction, golden_answers).f1


def support_recall(
    passages: Iterable[Passage], ids: Collection[str], titles: Collection[str]
) -> float | None:
    """The share of gold passages that were retrieved, by title, else by id; None if neither is labelled.

    Titles are the same in any corpus of the same source, ids are not.
    """
    if titles:
        retrieved = {_title_form(passage.title) for passage in passages}
        wanted = {_title_form(title) for title in titles}
    elif ids:
        retrieved, wanted = {passage.id for passage in passages}, set(ids)
    else:
        return None
    return len(wanted & retrieved) / len(wanted)


def wilson_interval(successes: float, trials: int) -> tuple[float, float]:
    """The 95% score interval of a share, without continuity correction (E. B. Wilson, JASA 22, 1927).

    Within 0 and 1, and of sensible width for few trials and extreme shares. By hand, because `successes` may
    be fractional, which scipy.stats.binomtest refuses.
    """
    share, z_square = successes / trials, 1.959964**2
    centre = share + z_square / (2 * trials)
    spread = math.sqrt(z_square * (share * (1 - share) + z_square / (4 * trials)) / trials)
    scale = 1 + z_square / trials
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def _folded(text: str) -> str:
    return " ".join(text.lower().split())


def _title_form(title: str) -> str:
    return normalize_answer(title) or _folded(title)  # "A" and "The The" are titles, too


def _f1(prediction: str, golden: str) -> float:
    if prediction == golden:
        return 1.0
    if prediction in _CLOSED_ANSWERS or golden in _CLOSED_ANSWERS:
        return 0.0
    predicted_tokens, golden_tokens = prediction.split(), golden.split()
    shared = {*predicted_tokens}.intersection(golden_tokens)
    common = sum([min(predicted_tokens.count(word), golden_tokens.count(word)) for word in shared])
    if common == 0:
        return 0.0
    precision, recall = common / len(predicted_tokens), common / len(golden_tokens)
    return 2 * precision * recall / (precision + recall)
