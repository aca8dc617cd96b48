"""Run files and judgements in TREC's form, and what pytrec_eval (trec_eval's own code) makes of them.

    run    QUERY Q0 PASSAGE RANK SCORE NAME      scores with all their digits: they read back as they were
    qrels  QUERY 0 PASSAGE GAIN

Fields are split at blanks, so blanks inside ids are written as %20 and so on, in runs and judgements alike.
Lines of others, with blanks inside passage ids (or, before Q0, question ids), are read from both ends, and
such blanks as if they had been written so.
trec_eval ranks by score, as a float of 32 bits, and equal ones by descending id, and passes over the rank.
"""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytrec_eval

from research.evaluation.config import EvaluationError
from research.files import atomic_path

Run = Mapping[str, Mapping[str, float]]
"""question id -> passage id -> score"""
Judgements = Mapping[str, Mapping[str, int]]
"""question id -> passage id -> gain, 1 for a relevant one"""
METRICS = {"ndcg@10": "ndcg_cut_10", "recall@10": "recall_10", "recall@100": "recall_100"}
METRICS["recall@1000"] = "recall_1000"
MEASURES = {"ndcg_cut.10", "recall.10,100,1000"}
RUN_LINE = re.compile(r"(\S.*?(?=\s+Q0\s)|\S+)\s+\S+\s+(\S.*?)\s+(\S+)\s+(\S+)\s+(\S+)")
QRELS_LINE = re.compile(r"(\S+)\s+\S+\s+(\S.*?)\s+(\S+)")


def plain_id(name: str) -> str:
    """The id without blanks."""
    return re.sub(r"\s", lambda found: quote(found[0]), name)


def write_run(path: Path, run: Run, name: str) -> None:
    """Write a run file in the order in which trec_eval ranks, whole or not at all. Raises DataError."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for query, scores in run.items():
            for rank, passage in enumerate(_ranked(scores), start=1):
                line = (plain_id(query), "Q0", plain_id(passage), rank, repr(float(scores[passage])), name)
                file.write(" ".join(map(str, line)) + "\n")


def read_run(path: Path) -> dict[str, dict[str, float]]:
    """The scores of a run file. Raises EvaluationError naming the line."""
    run: dict[str, dict[str, float]] = {}
    for where, query, passage, ends in _lines(path, RUN_LINE, 6):
        scores = run.setdefault(query, {})
        if passage in scores:
            raise EvaluationError(f"{where}: {passage} is there twice for question {query}")
        scores[passage] = _number(ends[1], where)
    return run


def read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """Judgements of a file in TREC's form. Raises EvaluationError naming the line."""
    qrels: dict[str, dict[str, int]] = {}
    for where, query, passage, ends in _lines(path, QRELS_LINE, 4):
        gains, gain = qrels.setdefault(query, {}), int(_number(ends[0], where))
        if gains.setdefault(passage, gain) != gain:
            raise EvaluationError(f"{where}: {passage} has two gains for question {query}")
    return qrels


def evaluate(run: Run, qrels: Judgements) -> dict[str, dict[str, float]]:
    """METRICS of each question of `qrels`, in its order; a question that the run lacks has 0 in all."""
    plain_qrels = {
        plain_id(query): {plain_id(each): gain for each, gain in gains.items()}
        for query, gains in qrels.items()
    }
    plain_run = {
        plain_id(query): {plain_id(each): float(score) for each, score in scores.items()}
        for query, scores in run.items()
    }
    found = pytrec_eval.RelevanceEvaluator(plain_qrels, MEASURES).evaluate(plain_run)
    nothing = dict.fromkeys(METRICS.values(), 0.0)
    rows = {query: found.get(plain_id(query), nothing) for query in qrels}
    return {query: {name: row[key] for name, key in METRICS.items()} for query, row in rows.items()}


def _ranked(scores: Mapping[str, float]) -> list[str]:
    return sorted(scores, key=lambda each: (np.float32(scores[each]), plain_id(each).encode()), reverse=True)


def _lines(path: Path, form: re.Pattern[str], count: int) -> Iterator[tuple[str, str, str, tuple[str, ...]]]:
    """(file and line, question id, passage id, the fields behind them) of each line that is not blank."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{path}: cannot be read ({error})") from error
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line:
            continue
        if (fields := form.fullmatch(line)) is None:
            raise EvaluationError(f"{path}:{number}: {len(line.split())} fields in place of {count}")
        query, passage, *ends = fields.groups()
        yield f"{path}:{number}", plain_id(query), plain_id(passage), tuple(ends)


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isfinite(value):
        return value
    raise EvaluationError(f"{where}: {text!r} is no number")
