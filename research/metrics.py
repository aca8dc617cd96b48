"""Answer metrics: exact match, token F1, contained answer, each the best over the golden answers; and the
interval of a share of right answers.

Normalisation is SQuAD's (lower case, no ASCII punctuation, no articles, single blanks), and F1 has HotpotQA's
rule that yes, no and noanswer must match exactly, as in the official scripts of HotpotQA, 2WikiMultiHopQA and
MuSiQue.
"""

import math
import re
import string
from collections import Counter
from collections.abc import Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_CLOSED_ANSWERS = {"yes", "no", "noanswer"}


def normalize_answer(text: str) -> str:
    """``The  Beatles!`` -> ``beatles``."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, golden_answers: Sequence[str]) -> float:
    """1.0 if the prediction equals a golden answer after normalisation, else 0.0."""
    return float(normalize_answer(prediction) in {normalize_answer(golden) for golden in golden_answers})


def token_f1(prediction: str, golden_answers: Sequence[str]) -> float:
    """Harmonic mean of token precision and recall with the closest golden answer, 0.0 to 1.0."""
    return max(
        (_f1(normalize_answer(prediction), normalize_answer(golden)) for golden in golden_answers),
        default=0.0,
    )


def contained_answer(prediction: str, golden_answers: Sequence[str]) -> float:
    """1.0 if a normalised golden answer is a substring of the normalised prediction, else 0.0."""
    normalized = normalize_answer(prediction)
    return float(any(normalize_answer(golden) in normalized for golden in golden_answers))


def wilson_interval(successes: float, trials: int) -> tuple[float, float]:
    """The 95% score interval of a share, without continuity correction (E. B. Wilson, JASA 22, 1927): within
    0 and 1, and of sensible width for few trials and for shares of 0 and 1.
    """
    share, z_square = successes / trials, 1.959964**2
    centre = share + z_square / (2 * trials)
    spread = math.sqrt(z_square * (share * (1 - share) + z_square / (4 * trials)) / trials)
    scale = 1 + z_square / trials
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def _f1(prediction: str, golden: str) -> float:
    if prediction != golden and _CLOSED_ANSWERS & {prediction, golden}:
        return 0.0
    predicted_tokens, golden_tokens = prediction.split(), golden.split()
    common = sum((Counter(predicted_tokens) & Counter(golden_tokens)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(predicted_tokens), common / len(golden_tokens)
    return 2 * precision * recall / (precision + recall)
