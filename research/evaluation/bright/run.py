"""One evaluation in one folder: rewrites.jsonl (of a model), runs/TASK.trec, scores.jsonl, metrics.json.

Started again with the same folder it resumes.
"""

import asyncio
import json
from pathlib import Path
from typing import Any

import requests
from omegaconf import DictConfig, OmegaConf

from research.datasets.bright import REPO, BrightTask, hub_task, local_task
from research.datasets.hub import revision_of
from research.datasets.rewriting_tasks import RewritingTask
from research.evaluation.bright.config import ORIGINAL, BrightConfig, read_bright_config
from research.evaluation.bright.published import comparison
from research.evaluation.bright.queries import BrightQuery, query_of, texts_to_search
from research.evaluation.bright.retrieve import retrieve_all
from research.evaluation.bright.score import figures, mean_figures, table
from research.evaluation.bright.trec import Run, read_run, trec_scores, write_run
from research.evaluation.config import EvaluationError
from research.evaluation.engines.identity import check_model, file_sha256, hash_of, model_identity
from research.evaluation.outputs.folder import RUNTIME_KEYS, check_same
from research.evaluation.outputs.summary import MEAN, write_summary
from research.files import write_atomically
from research.places import CACHE
from research.processes import alone_in
from research.tools.service import serving

CACHE = CACHE / "bright"
SCORES_FILE = "scores.jsonl"
# What may differ when a run is resumed; `batch` is in folders of earlier versions.
FREE = RUNTIME_KEYS | {"data"} | {f"retriever.{key}" for key in ("batch", "in_flight", "timeout", "deadline")}


def evaluate_bright(config: DictConfig, run_dir: Path) -> str:
    """Run the evaluation, or the rest of it; the figures as text.

    Raises EvaluationError or DataError with a one-line reason. What is finished stays, whatever happens.
    """
    read = read_bright_config(config)
    tasks = [_task(name, read) for name in read.tasks]
    if read.queries is None:
        check_model(read.engine)
    identity = _identity(tasks, read)
    with alone_in(run_dir, EvaluationError):
        check_same(run_dir, config, identity, FREE)
        texts = texts_to_search(tasks, read, run_dir, identity["queries"])
        results, scores = [], {}
        for task in tasks:
            queries = [query_of(each, texts[task.name].get(each.id, ()), read) for each in task.questions]
            corpus = identity["tasks"][task.name]["corpus"]
            ranking, retriever = _retrieved(task, queries, read, run_dir / "runs", corpus)
            gold = {each.id: dict.fromkeys(each.gold_ids, 1) for each in task.questions}
            scores[task.name] = trec_scores(ranking, gold)
            row = {"task": task.name, **figures(scores[task.name]), **_counts(queries)}
            results.append(row | {"passages": retriever["count"], "retriever": retriever})
        if len(tasks) > 1:
            results.append({"task": MEAN, **mean_figures(scores)})
        rows = ({"task": task, "id": each, **row} for task in scores for each, row in scores[task].items())
        write_atomically(run_dir / SCORES_FILE, "".join(json.dumps(row) + "\n" for row in rows))
        source = _source(read)
        write_summary(run_dir, {**identity, "data": source, "config": _settings(config), "results": results})
        parts = [table(results), comparison(results, read.retriever, read.long), f"judgements: {source}"]
        return "\n\n".join(filter(None, parts))


def _task(name: str, config: BrightConfig) -> BrightTask:
    if config.data is None:
        return hub_task(name, CACHE, config.long, config.revision)
    return local_task(name, Path(config.data), CACHE, config.long)


def _source(config: BrightConfig) -> str:
    """Where questions and judgements come from; the hub's are corrected now and then."""
    return config.data or f"{REPO}, revision {revision_of(REPO, config.revision)}"


def _identity(tasks: list[BrightTask], config: BrightConfig) -> dict[str, Any]:
    """What the figures depend on besides the configuration: what its files contain."""
    source: dict[str, Any] = {"source": config.queries}
    if config.queries is None:
        source = model_identity(config.engine)
    elif config.queries != ORIGINAL:
        source["sha256"] = file_sha256(Path(config.queries))
    of_tasks = {
        task.name: {
            "questions": len(task.questions),
            "sha256": hash_of([_parts(each) for each in task.questions]),
            "corpus": file_sha256(task.corpus),
        }
        for task in tasks
    }
    return {"queries": source, "tasks": of_tasks}


def _retrieved(
    task: BrightTask, queries: list[BrightQuery], config: BrightConfig, folder: Path, corpus: str
) -> tuple[Run, dict[str, Any]]:
    """The ranking, from the run file if it fits these texts, and what the retriever reports about itself."""
    settings = config.retriever
    service = settings.service(task.corpus, max(len(each.excluded_ids) for each in task.questions))
    path, note = folder / f"{task.name}.trec", folder / f"{task.name}.json"
    texts = [[*_parts(query.question), query.texts, query.weights] for query in queries]
    origin = [corpus, settings.kind, service.options, settings.top_k, config.fusion, config.rrf_k]
    key = hash_of([texts, origin])
    if path.exists() and note.exists() and (saved := json.loads(note.read_text()))["key"] == key:
        return read_run(path), saved["retriever"]
    with serving(service) as url:
        health = requests.get(f"{url}/health", timeout=settings.timeout).json()
        run = asyncio.run(retrieve_all(url, queries, config))
    retriever = {name: health[name] for name in ("index", "encoder", "count", "fingerprint")}
    retriever["options"] = list(service.options)
    write_run(path, run, settings.name)
    write_atomically(note, json.dumps({"key": key, "retriever": retriever}) + "\n")
    return run, retriever


def _counts(queries: list[BrightQuery]) -> dict[str, Any]:
    """Which questions have no text, and how many have only blank ones: both count as 0."""
    return {
        "without_text": [query.question.id for query in queries if not query.texts],
        "blank": sum(bool(query.texts) and not any(map(str.strip, query.texts)) for query in queries),
    }


def _settings(config: DictConfig) -> dict[str, Any]:
    """The part of the configuration that the figures depend on, for metrics.json."""
    names = ["long", "mode", "weight", "fusion", "rrf_k", "field", "retriever"]
    names += ["rewriting", "sampling"] if config.queries is None else []
    values: Any = OmegaConf.to_container(config)
    return {name: values[name] for name in names}


def _parts(question: RewritingTask) -> list[Any]:
    return [question.id, question.question, question.gold_ids, question.excluded_ids]
