"""What each recipe trains on, by hardware: model, questions, corpus, encoder, and what makes them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from research.places import CACHE
from research.training.run.options import Command, RecipeOptions, cache_key, generators, module_command

GPU_MODEL = "Qwen/Qwen2.5-7B-Instruct"
GPU_ENCODER = "intfloat/e5-base-v2"
GPU_REWARD_ENCODER = "BAAI/bge-base-en-v1.5"
PREPARED = CACHE / "rqr"  # by data/prepare_rqr.py


@dataclass(frozen=True)
class RunInputs:
    """Files and models of a run.

    Attributes:
        corpus: None if a retriever runs elsewhere.
        encoder: of a dense index, and of the reward embedding_gain.
        index: a kind of the retrieval server's.
    """

    model: str
    questions: Path
    validation: Path | None
    test: Path | None
    corpus: Path | None
    encoder: str
    faiss_index: Path | None = None
    index: str = "flat"


InputsOf = Callable[[RecipeOptions, list[Command]], RunInputs]
"""(options, list to which the commands that make something are added) -> what is there after them"""


@dataclass(frozen=True)
class Recipe:
    """A training: recipes/train_NAME.sh, research/config/train_NAME.yaml, runs/train_NAME-TIME.

    Attributes:
        questions_option: the option for the training questions.
        prepared: the files that a run on GPUs needs if it names none.
        encoder_key: a key of the configuration for the encoder.
    """

    questions_option: str
    cpu: InputsOf
    gpu: InputsOf
    prepared: tuple[Path, ...] = ()
    encoder_key: str = ""

    def inputs(self, options: RecipeOptions, prepare: list[Command]) -> RunInputs:
        """By the hardware of the options."""
        return self.cpu(options, prepare) if options.hardware == "cpu" else self.gpu(options, prepare)


def _generate(prepare: list[Command], task: str, module: str, *arguments: Any, needed: bool = True) -> Path:
    """The cache folder of what a generator makes; its command is added to `prepare` if needed."""
    folder = CACHE / f"{module.replace('.', '_')}-{cache_key(*arguments, *generators())}"
    if needed:
        generator = f"research.datasets.{module}"
        prepare.append(module_command(task, generator, "--out", folder, *arguments, creates=folder))
    return folder


def _needs_corpus(options: RecipeOptions) -> bool:
    return options.corpus is None and options.retriever_url is None


def _splits(options: RecipeOptions, folder: Path, kind: str) -> dict[str, Any]:
    """The user's files; if the user brought none to train on, those of a folder for the missing ones."""
    names = ("train", "validation", "test") if options.questions is None else ()
    ours = {split: folder / f"{split}.{kind}.jsonl" for split in names}
    return {
        "questions": options.questions or ours["train"],
        "validation": options.validation or ours.get("validation"),
        "test": options.test or ours.get("test"),
    }


# ------------------------------------------------------------------------------------------ search agents


def _musique_cpu(options: RecipeOptions, prepare: list[Command]) -> RunInputs:
    """The tiny policy, and the mini world with its encoder unless the user brought questions or a corpus."""
    needed = options.questions is None or _needs_corpus(options)
    sizes = ("--seed", options.seed, "--passages", options.passages, "--test", options.test_questions)
    world = _generate(prepare, "make the mini world", "mini.world", *sizes, needed=needed)
    encoder, index = options.encoder or "minilm", options.index or "flat"
    if options.encoder is None and _needs_corpus(options) and not index.startswith("bm25"):
        encoder = str(_generate(prepare, "make the mini encoder", "mini.encoder"))
    policy = ("cold-start the tiny policy", "mini.policy", "--seed", options.seed)
    return RunInputs(
        **_splits(options, world, "questions"),
        model=options.model or str(_generate(prepare, *policy)),
        corpus=world / "corpus.jsonl" if _needs_corpus(options) else options.corpus,
        encoder=encoder,
        faiss_index=options.faiss_index,
        index=index,
    )


def _musique_gpu(options: RecipeOptions, prepare: list[Command]) -> RunInputs:
    """MuSiQue, Wikipedia of 2018 with its E5 index, Qwen2.5-7B-Instruct, unless the user brought others."""
    musique, wiki = CACHE / "musique", CACHE / "wiki18"
    if options.questions is None:
        command = ("download MuSiQue", "research.datasets.musique", "--out", musique)
        prepare.append(module_command(*command, creates=musique / "test.questions.jsonl"))
    corpus, faiss_index = options.corpus, options.faiss_index
    if _needs_corpus(options):
        command = ("download Wikipedia 2018 and its E5 index", "research.datasets.wiki18", "--out", wiki)
        prepare.append(module_command(*command, creates=wiki / "e5_Flat.index"))
        corpus, faiss_index = wiki / "wiki-18.jsonl", faiss_index or wiki / "e5_Flat.index"
    return RunInputs(
        **_splits(options, musique, "questions"),
        model=options.model or GPU_MODEL,
        corpus=corpus,
        encoder=options.encoder or GPU_ENCODER,
        faiss_index=faiss_index,
        index=options.index or "flat",
    )


# ------------------------------------------------------------------------------------------ query reasoners


def _rqr_cpu(options: RecipeOptions, prepare: list[Command]) -> RunInputs:
    """The tiny rewriting policy, and the mini rewriting world unless the user brought tasks."""
    policy = ("cold-start the tiny policy", "mini_rewriting.policy", "--seed", options.seed)
    if options.questions is not None:
        return _own_tasks(options, prepare, options.model or str(_generate(prepare, *policy)), "minilm")
    make_world = ("make the mini rewriting world", "mini_rewriting.world", "--seed", options.seed)
    world = _generate(prepare, *make_world)
    encoder = options.encoder or str(_generate(prepare, "make its encoder", "mini_rewriting.encoder"))
    return RunInputs(
        **_splits(options, world, "tasks"),
        model=options.model or str(_generate(prepare, *policy)),
        corpus=world / "corpus.jsonl" if _needs_corpus(options) else options.corpus,
        encoder=encoder,
        index=options.index or "bm25",
    )


def _rqr_gpu(options: RecipeOptions, prepare: list[Command]) -> RunInputs:
    """Qwen2.5-7B-Instruct, and what data/prepare_rqr.py has written to PREPARED unless tasks are named."""
    if options.questions is None:
        corpus = PREPARED / "corpus.jsonl" if _needs_corpus(options) else options.corpus
        tasks, validation = PREPARED / "train.parquet", options.validation or PREPARED / "dev.parquet"
        options = replace(options, questions=tasks, validation=validation, corpus=corpus)
    return _own_tasks(options, prepare, options.model or GPU_MODEL, GPU_REWARD_ENCODER)


def _own_tasks(options: RecipeOptions, prepare: list[Command], model: str, default_encoder: str) -> RunInputs:
    """Tasks with the corpus they are about; without one their positives are the corpus."""
    files = {"train": options.questions, "validation": options.validation, "test": options.test}
    tasks = {split: path for split, path in files.items() if path}
    corpus = options.corpus
    if _needs_corpus(options):
        folder = CACHE / f"positives-{cache_key(*tasks.values(), *map(version_of, tasks.values()))}"
        command = ("make a corpus of the tasks' positives", "research.datasets.stack_exchange.positives")
        arguments = [each for split, path in tasks.items() for each in (f"--{split}", path)]
        prepare.append(module_command(*command, "--out", folder, *arguments, creates=folder))
        corpus = folder / "corpus.jsonl"
        tasks = {split: folder / f"{split}.tasks.jsonl" for split in tasks}
    return RunInputs(
        model=model,
        questions=tasks["train"],
        validation=tasks.get("validation"),
        test=tasks.get("test"),
        corpus=corpus,
        encoder=options.encoder or default_encoder,
        index=options.index or "bm25",
    )


def version_of(path: Path) -> tuple[int, int] | None:
    """Of a file of the user's, which may change under its name; None for one of ours, or a missing one."""
    if path.is_relative_to(CACHE) or not path.exists():
        return None
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


RECIPES = {
    "musique": Recipe("--questions", _musique_cpu, _musique_gpu),
    "rqr": Recipe(
        "--tasks",
        _rqr_cpu,
        _rqr_gpu,
        prepared=tuple(PREPARED / name for name in ("train.parquet", "dev.parquet", "corpus.jsonl")),
        encoder_key="research.rewriting.encoder",
    ),
}
