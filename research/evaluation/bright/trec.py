"""Run files and judgements in TREC's format, scored by pytrec_eval (trec_eval's own code).

    run    QUERY Q0 PASSAGE RANK SCORE NAME      scores with all their digits: they read back as they were
    qrels  QUERY 0 PASSAGE GAIN

Fields are separated by blanks, so blanks inside ids are written as %20 and so on, in runs and judgements
alike. In lines of others, with blanks inside passage ids (or, before Q0, question ids), such blanks are read
the same way. trec_eval ranks by score, as a 32-bit float, and equal ones by descending id, not by the rank.
"""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytrec_eval

from research.evaluation.config import EvaluationError
from research.files import atomic_path

Run = Mapping[str, Mapping[str, float]]
"""question id -> passage id -> score"""
Judgements = Mapping[str, Mapping[str, int]]
"""question id -> passage id -> gain, 1 for a relevant one"""
METRICS = {"ndcg@10": "ndcg_cut_10", **{f"recall@{k}": f"recall_{k}" for k in (10, 100, 1000)}}
MEASURES = {"ndcg_cut.10", "recall.10,100,1000"}
RUN_LINE = re.compile(r"(\S.*?(?=\s+Q0\s)|\S+)\s+\S+\s+(\S.*?)\s+(\S+)\s+(\S+)\s+(\S+)")
QRELS_LINE = re.compile(r"(\S+)\s+\S+\s+(\S.*?)\s+(\S+)")


def plain_id(name: str) -> str:
    """The id without blanks."""
    return re.sub(r"\s", lambda blank: quote(blank[0]), name)


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
    """The judgements of a file in TREC's format. Raises EvaluationError naming the line."""
    qrels: dict[str, dict[str, int]] = {}
    for where, query, passage, ends in _lines(path, QRELS_LINE, 4):
        gains, gain = qrels.setdefault(query, {}), int(_number(ends[0], where))
        if gains.setdefault(passage, gain) != gain:
            raise EvaluationError(f"{where}: {passage} has two gains for question {query}")
    return qrels


def trec_scores(run: Run, qrels: Judgements) -> dict[str, dict[str, float]]:
    """METRICS of each question of `qrels`, in its order; a question missing in the run has 0 in all."""
    results = pytrec_eval.RelevanceEvaluator(_plain(qrels, int), MEASURES).evaluate(_plain(run, float))
    nothing = dict.fromkeys(METRICS.values(), 0.0)
    rows = {query: results.get(plain_id(query), nothing) for query in qrels}
    return {query: {name: row[key] for name, key in METRICS.items()} for query, row in rows.items()}


def _plain(rows: Mapping[str, Mapping[str, float]], kind: type) -> dict[str, dict[str, Any]]:
    """The same with plain ids, and with Python's own numbers, which pytrec_eval requires."""
    return {
        plain_id(query): {plain_id(passage): kind(value) for passage, value in values.items()}
        for query, values in rows.items()
    }


def _ranked(scores: Mapping[str, float]) -> list[str]:
    return sorted(scores, key=lambda each: (np.float32(scores[each]), plain_id(each).encode()), reverse=True)


def _lines(path: Path, form: re.Pattern[str], count: int) -> Iterator[tuple[str, str, str, tuple[str, ...]]]:
    """(file and line, question id, passage id, the remaining fields) of each line that is not blank."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{path}: cannot be read ({error})") from error
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line:
            continue
        if (fields := form.fullmatch(line)) is None:
            raise EvaluationError(f"{path}:{number}: {len(line.split())} fields instead of {count}")
        query, passage, *ends = fields.groups()
        yield f"{path}:{number}", plain_id(query), plain_id(passage), tuple(ends)


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isfinite(value):
        return value
    raise EvaluationError(f"{where}: {text!r} is not a number")
