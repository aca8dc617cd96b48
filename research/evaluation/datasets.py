"""Which questions to ask: data sets by name or by file, as tasks in a fixed order."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from research.datasets.flashrag import SETS, question_set
from research.datasets.questions import Question
from research.environments import read_items
from research.environments.question_answering import Environment
from research.evaluation.config import EvaluationConfig, EvaluationError
from research.evaluation.engines.identity import hash_of
from research.evaluation.runner import Task, environment_of
from research.places import CACHE

FOLDER = CACHE / "flashrag"


def read_datasets(config: EvaluationConfig) -> dict[str, list[Question]]:
    """Label -> questions; the label is a data set's name, or the beginning of its file's name.

    A file whose rows name several data sets (`data_source`) becomes one for each, as in training.

    Raises EvaluationError for an unknown name or two data sets with one label, DataError for a bad file.
    """
    datasets: dict[str, list[Question]] = {}
    environment = environment_of(config)
    for name in config.datasets:
        label = name if name in SETS else Path(name).name.split(".")[0]
        for part, questions in _by_source(label, _read(name, environment)).items():
            if part in datasets:
                raise EvaluationError(f"two data sets are called {part}: rename one of the files")
            datasets[part] = questions[: config.limit]
    return datasets


def _by_source(label: str, questions: list[Question]) -> dict[str, list[Question]]:
    sources = dict.fromkeys(each.data_source for each in questions)
    if len(sources) == 1:
        return {label: questions}
    return {
        f"{label}_{source}" if source else label: [each for each in questions if each.data_source == source]
        for source in sources
    }


def tasks(datasets: dict[str, list[Question]], config: EvaluationConfig) -> Iterator[Task]:
    """All tasks, in the order of predictions.jsonl."""
    for dataset, questions in datasets.items():
        for method in config.methods:
            yield from (Task(dataset, method, question) for question in questions)


def digest(questions: Sequence[Question]) -> str:
    """A hash of everything that is asked and scored, and of its order."""
    parts = [
        (each.id, each.question, each.golden_answers, each.hops, each.supporting_ids, each.supporting_titles)
        for each in questions
    ]
    return hash_of(parts)[:16]


def _read(name: str, environment: Environment) -> list[Question]:
    if name not in SETS and not Path(name).exists():
        raise EvaluationError(f"{name} is neither a file nor one of {', '.join(SETS)}")
    path = question_set(name, FOLDER) if name in SETS else Path(name)
    return read_items(environment, path, "test")
