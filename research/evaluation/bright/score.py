"""Scores of others' run files, over the questions that are judged and in the run; the rest is named."""

from pathlib import Path

from research.datasets.bright import question_file
from research.evaluation.bright.queries import named
from research.evaluation.bright.summary import figures, table
from research.evaluation.bright.trec import plain_id, read_qrels, read_run, trec_scores


def score(run_file: Path, qrels_file: Path, task: str | None = None, long: bool = False) -> str:
    """The figures as text. Raises EvaluationError or DataError.

    Judgements are a file in TREC's format, or questions with gold ids, of which `task` selects one task's
    (research.datasets.bright.question_file).
    """
    run = read_run(run_file)
    qrels = _judgements(qrels_file, task, long)
    plain = {plain_id(query): query for query in qrels}
    both = {query: qrels[query] for key, query in plain.items() if key in run}
    remarks = [f"{len(both)} questions are judged and in the run."]
    if absent := [query for key, query in plain.items() if key not in run]:
        remarks.append(f"Missing in the run, {len(absent)}: {named(absent)}.")
    if others := [query for query in run if query not in plain]:
        remarks.append(f"In the run without judgement, {len(others)}: {named(others)}.")
    if not both:
        return "\n".join(remarks)
    rows = [{"task": "questions present", **figures(trec_scores(run, both))}]
    if absent:
        rows.append({"task": "missing as 0", **figures(trec_scores(run, qrels))})
    return "\n".join([table(rows), "", *remarks])


def _judgements(path: Path, task: str | None, long: bool) -> dict[str, dict[str, int]]:
    if path.suffix in (".jsonl", ".gz", ".parquet", ".json"):
        questions = question_file(path, task, long)
        return {each.id: dict.fromkeys(each.gold_ids, 1) for each in questions}
    return read_qrels(path)
