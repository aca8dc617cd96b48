"""One evaluation in one folder: config.yaml, identity.json, rewrites.jsonl (of a model), runs/TASK.trec, and
scores.jsonl and metrics.json from them. Started again with the same folder it asks nothing twice.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import click
import requests
from omegaconf import DictConfig

from research.datasets.bright import BrightTask, hub_task, local_task
from research.datasets.rewriting_tasks import RewritingTask
from research.errors import DataError
from research.evaluation.bright.config import ORIGINAL, BrightConfig, read_config
from research.evaluation.bright.published import comparison
from research.evaluation.bright.queries import Query, TextFile, missing, named, query_of
from research.evaluation.bright.retrieve import retrieve
from research.evaluation.bright.rewrite import Rewrites, rewrite_all, wanted
from research.evaluation.bright.summary import figures, mean_figures, table
from research.evaluation.bright.trec import evaluate, read_run, write_run
from research.evaluation.config import EvaluationError
from research.evaluation.engines.identity import model_identity
from research.evaluation.outputs.folder import Free, check_same
from research.evaluation.service import serving
from research.files import atomic_path, write_atomically
from research.places import CACHE
from research.processes import alone_in

CACHE = CACHE / "bright"
METRICS_FILE, SCORES_FILE = "metrics.json", "scores.jsonl"
MEAN = "mean"
FREE = Free(
    keys={"concurrency", "question_timeout", "data"},
    within={
        "engine": {
            "api_key_variable",
            "timeout",
            "deadline",
            "gpu_memory_utilization",
            "tensor_parallel_size",
        },
        "retriever": {"batch", "in_flight", "timeout", "deadline"},
    },
)


def run(config: DictConfig, run_dir: Path) -> str:
    """Do the evaluation, or the rest of it; the figures as text.

    Raises EvaluationError or DataError with the one-line reason. What is finished stays, whatever happens.
    """
    read = read_config(config)
    tasks = [_task(name, read) for name in read.tasks]
    identity = _identity(tasks, read)
    with alone_in(run_dir, EvaluationError):
        check_same(run_dir, config, identity, FREE)
        texts = _texts(tasks, read, run_dir, identity["queries"])
        results, scores = [], {}
        for task in tasks:
            queries = [query_of(each, texts[task.name].get(each.id, ()), read) for each in task.questions]
            found = _retrieved(task, queries, read, run_dir, identity["tasks"][task.name]["corpus"])
            gold = {each.id: dict.fromkeys(each.gold_ids, 1) for each in task.questions}
            scores[task.name] = evaluate(found["run"], gold)
            row = {"task": task.name, **figures(scores[task.name]), **_counts(queries)}
            results.append(row | {"passages": found["retriever"]["count"], "retriever": found["retriever"]})
        if len(tasks) > 1:
            results.append({"task": MEAN, **mean_figures(scores)})
        _write(run_dir, {**identity, "config": _asked(config), "results": results}, scores)
        return "\n\n".join(filter(None, [table(results), comparison(results, read.retriever, read.long)]))


def _task(name: str, config: BrightConfig) -> BrightTask:
    if config.data is None:
        return hub_task(name, CACHE, config.long, config.revision)
    return local_task(name, Path(config.data), CACHE, config.long)


def _identity(tasks: list[BrightTask], config: BrightConfig) -> dict[str, Any]:
    """What the figures hang on, besides the configuration: what its files held."""
    source: dict[str, Any] = {"source": config.queries}
    if config.queries is None:
        source = model_identity(config.engine)
    elif config.queries != ORIGINAL:
        source["sha256"] = _file_hash(Path(config.queries))
    return {
        "queries": source,
        "tasks": {
            task.name: {
                "questions": len(task.questions),
                "sha256": _hash([_parts(each) for each in task.questions]),
                "corpus": _file_hash(task.corpus),
            }
            for task in tasks
        },
    }


def _texts(
    tasks: list[BrightTask], config: BrightConfig, run_dir: Path, model: dict[str, Any]
) -> dict[str, dict[str, tuple[str, ...]]]:
    """task -> question -> its texts; what has none is told."""
    if config.queries == ORIGINAL:
        return {task.name: {each.id: (each.question,) for each in task.questions} for task in tasks}
    if config.queries is None:
        return _written(tasks, config, run_dir, model)
    file = TextFile(Path(config.queries), config.field)
    texts = {task.name: file.of(task, alone=len(tasks) == 1) for task in tasks}
    for task in tasks:
        if absent := missing(task, texts[task.name]):
            message = (
                f"{config.queries} has no texts for {len(absent)} questions of {task.name}: {named(absent)}"
            )
            if not config.allow_missing:
                raise EvaluationError(f"{message}. With --allow-missing they count as 0")
            _warn(f"{message}. They count as 0")
    return texts


def _written(
    tasks: list[BrightTask], config: BrightConfig, run_dir: Path, model: dict[str, Any]
) -> dict[str, dict[str, tuple[str, ...]]]:
    """The texts of the model. A failed one is left out; a question without any counts as 0."""
    rewrites = Rewrites(run_dir)
    asked = wanted(tasks, config, model)
    rewrite_all(asked, rewrites, config)
    texts: dict[str, dict[str, tuple[str, ...]]] = {task.name: {} for task in tasks}
    made = [rewrites.done[each.key] for each in asked]
    for row in made:
        if row.error is None:
            texts[row.task][row.id] = (*texts[row.task].get(row.id, ()), row.text)
    if failed := [row for row in made if row.error is not None]:
        ids = named([f"{row.task} {row.id}" for row in failed])
        if len(failed) == len(made):
            raise EvaluationError(
                f"all {len(made)} texts failed; run again to ask again; first: {failed[0].error}"
            )
        _warn(f"{len(failed)} of {len(made)} texts failed and count as 0: {ids}; first: {failed[0].error}")
    if empty := [row for row in made if row.error is None and not row.text]:
        _warn(
            f"{len(empty)} of {len(made)} texts are empty: {named([f'{row.task} {row.id}' for row in empty])}"
        )
    return texts


def _retrieved(
    task: BrightTask, queries: list[Query], config: BrightConfig, run_dir: Path, corpus: str
) -> dict[str, Any]:
    """The task's run, and what the retriever says of itself; from the run file, if it is of these texts."""
    settings = config.retriever
    most_excluded = max(len(each.excluded_ids) for each in task.questions)
    service = settings.service(task.corpus, most_excluded)
    path, note = run_dir / "runs" / f"{task.name}.trec", run_dir / "runs" / f"{task.name}.json"
    asked = [[*_parts(query.question), query.texts, query.weights] for query in queries]
    made_by = [corpus, settings.kind, service.options, settings.top_k, config.fusion, config.rrf_k]
    key = _hash([asked, made_by])
    if path.exists() and note.exists() and (said := json.loads(note.read_text()))["key"] == key:
        return {"run": read_run(path), "retriever": said["retriever"]}
    with serving(service) as url:
        health = requests.get(f"{url}/health", timeout=settings.timeout).json()
        run = retrieve(url, queries, settings, config.fusion, config.rrf_k)
    retriever = {name: health[name] for name in ("index", "encoder", "count", "fingerprint")}
    retriever["options"] = list(service.options)
    write_run(path, run, settings.name)
    note.write_text(json.dumps({"key": key, "retriever": retriever}) + "\n")
    return {"run": run, "retriever": retriever}


def _counts(queries: list[Query]) -> dict[str, Any]:
    """Which questions have no text, and of how many all texts are blank: both count as 0."""
    return {
        "without_text": [query.question.id for query in queries if not query.texts],
        "blank": sum(bool(query.texts) and not any(map(str.strip, query.texts)) for query in queries),
    }


def _write(run_dir: Path, summary: dict[str, Any], scores: dict[str, dict[str, dict[str, float]]]) -> None:
    with atomic_path(run_dir / SCORES_FILE) as temporary, temporary.open("w", encoding="utf-8") as file:
        for task, rows in scores.items():
            file.writelines(
                json.dumps({"task": task, "id": each, **row}) + "\n" for each, row in rows.items()
            )
    write_atomically(run_dir / METRICS_FILE, json.dumps(summary, indent=1, ensure_ascii=False) + "\n")


def _asked(config: DictConfig) -> dict[str, Any]:
    """The part of the configuration that figures hang on, for metrics.json."""
    names = ("long", "mode", "weight", "fusion", "rrf_k", "field", "retriever")
    with_model = ("rewriting", "sampling") if config.queries is None else ()
    values: dict[str, Any] = {}
    for name in (*names, *with_model):
        value = config[name]
        values[name] = dict(value) if isinstance(value, DictConfig) else value
    values["retriever"]["options"] = list(values["retriever"]["options"])
    return values


def _parts(question: RewritingTask) -> list[Any]:
    return [question.id, question.question, question.gold_ids, question.excluded_ids]


def _hash(parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _file_hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _warn(message: str) -> None:
    click.secho(f"WARNING: {message}.", fg="red", bold=True, err=True)
