"""What each recipe trains on, by hardware: model, questions, corpus, encoder, and what makes them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from research.places import CACHE
from research.training.run.options import Command, Options, generators, key_of, module_command

GPU_MODEL = "Qwen/Qwen2.5-7B-Instruct"
GPU_ENCODER = "intfloat/e5-base-v2"
PREPARED = CACHE / "rqr"  # by research/datasets/stack_exchange/prepare.py
GPU_REWARD_ENCODER = "BAAI/bge-base-en-v1.5"


@dataclass(frozen=True)
class Source:
    """Files and models of a run; ``encoder`` is that of a dense index and of the reward embedding_gain.

    ``corpus`` is None where a retriever runs elsewhere; ``index`` is a kind of the retrieval server's.
    """

    model: str
    questions: Path
    validation: Path | None
    test: Path | None
    corpus: Path | None
    encoder: str
    faiss_index: Path | None = None
    index: str = "flat"


Sources = Callable[[Options, list[Command]], Source]
"""(options, list to which the commands that make something are added) -> what is there after them"""


@dataclass(frozen=True)
class Recipe:
    """A training: recipes/train_NAME.sh, research/config/train_NAME.yaml, runs/train_NAME-TIME.

    ``questions_option`` is the word by which the command line names the training questions, ``prepared`` are
    the files that a run without any takes on GPUs, and ``encoder_key`` is a key for the source's encoder.
    """

    name: str
    questions_option: str
    cpu: Sources
    gpu: Sources
    prepared: tuple[Path, ...] = ()
    encoder_key: str = ""

    def source(self, options: Options, prepare: list[Command]) -> Source:
        """By the options' hardware."""
        return self.cpu(options, prepare) if options.hardware == "cpu" else self.gpu(options, prepare)


def _made(prepare: list[Command], what: str, module: str, *arguments: Any, needed: bool = True) -> Path:
    """The cache folder of what a generator makes; it is put into `prepare` if needed."""
    name = module.removeprefix("research.datasets.").replace(".", "_")
    folder = CACHE / f"{name}-{key_of(*arguments, *generators())}"
    if needed:
        prepare.append(module_command(what, module, "--out", folder, *arguments, creates=folder))
    return folder


def _no_corpus(options: Options) -> bool:
    return options.corpus is None and options.retriever_url is None


# ------------------------------------------------------------------------------------------ search agents


def _musique_cpu(options: Options, prepare: list[Command]) -> Source:
    """The tiny policy, and the mini world with its encoder unless the user brought questions or a corpus."""
    own = options.questions is not None
    sizes = ("--seed", options.seed, "--passages", options.passages, "--test", options.test_questions)
    world = _made(
        prepare,
        "make the mini world",
        "research.datasets.mini.world",
        *sizes,
        needed=not own or _no_corpus(options),
    )
    encoder, index = options.encoder or "minilm", options.index or "flat"
    if options.encoder is None and _no_corpus(options) and not index.startswith("bm25"):
        encoder = str(_made(prepare, "make the mini encoder", "research.datasets.mini.encoder"))
    policy = ("cold-start the tiny policy", "research.datasets.mini.policy", "--seed", options.seed)
    return Source(
        model=options.model or str(_made(prepare, *policy)),
        questions=options.questions or world / "train.questions.jsonl",
        validation=options.validation or (None if own else world / "validation.questions.jsonl"),
        test=options.test or (None if own else world / "test.questions.jsonl"),
        corpus=options.corpus or (None if options.retriever_url else world / "corpus.jsonl"),
        encoder=encoder,
        faiss_index=options.faiss_index,
        index=index,
    )


def _musique_gpu(options: Options, prepare: list[Command]) -> Source:
    """MuSiQue, the 2018 Wikipedia with its E5 index, and Qwen2.5-7B-Instruct, each unless the user brought
    another.
    """
    musique, wiki = CACHE / "musique", CACHE / "wiki18"
    own = options.questions is not None
    validation, test = (musique / f"{split}.questions.jsonl" for split in ("validation", "test"))
    if not own:
        command = ("download MuSiQue", "research.datasets.musique", "--out", musique)
        prepare.append(module_command(*command, creates=test))
    corpus, index = options.corpus, options.faiss_index
    if _no_corpus(options):
        command = ("download Wikipedia 2018 and its E5 index", "research.datasets.wiki18", "--out", wiki)
        prepare.append(module_command(*command, creates=wiki / "e5_Flat.index"))
        corpus, index = wiki / "wiki-18.jsonl", index or wiki / "e5_Flat.index"
    return Source(
        model=options.model or GPU_MODEL,
        questions=options.questions or musique / "train.questions.jsonl",
        validation=options.validation or (None if own else validation),
        test=options.test or (None if own else test),
        corpus=corpus,
        encoder=options.encoder or GPU_ENCODER,
        faiss_index=index,
        index=options.index or "flat",
    )


# ------------------------------------------------------------------------------------------ query reasoners


def _rqr_cpu(options: Options, prepare: list[Command]) -> Source:
    """The tiny rewriting policy, and the mini rewriting world with its encoder unless the user brought
    tasks.
    """
    policy = ("cold-start the tiny policy", "research.datasets.mini_rewriting.policy", "--seed", options.seed)
    if options.questions:
        model = options.model or str(_made(prepare, *policy))
        return _own_tasks(options, prepare, options.questions, model, "minilm")
    make_world = (
        "make the mini rewriting world",
        "research.datasets.mini_rewriting.world",
        "--seed",
        options.seed,
    )
    world = _made(prepare, *make_world)
    encoder = options.encoder
    if encoder is None:
        encoder = str(_made(prepare, "make its encoder", "research.datasets.mini_rewriting.encoder"))
    return Source(
        model=options.model or str(_made(prepare, *policy)),
        questions=world / "train.tasks.jsonl",
        validation=options.validation or world / "validation.tasks.jsonl",
        test=options.test or world / "test.tasks.jsonl",
        corpus=options.corpus or (None if options.retriever_url else world / "corpus.jsonl"),
        encoder=encoder,
        index=options.index or "bm25",
    )


def _rqr_gpu(options: Options, prepare: list[Command]) -> Source:
    """Qwen2.5-7B-Instruct, and what data/prepare_rqr.py has made in PREPARED unless tasks are named."""
    tasks = options.questions or PREPARED / "train.parquet"
    if options.questions is None:
        validation, corpus = options.validation or PREPARED / "dev.parquet", options.corpus
        if _no_corpus(options):
            corpus = PREPARED / "corpus.jsonl"
        options = replace(options, validation=validation, corpus=corpus)
    return _own_tasks(options, prepare, tasks, options.model or GPU_MODEL, GPU_REWARD_ENCODER)


def _own_tasks(
    options: Options, prepare: list[Command], tasks: Path, model: str, default_encoder: str
) -> Source:
    """Tasks with the corpus that they are about; without one their positives are the corpus."""
    files = {"train": tasks, "validation": options.validation, "test": options.test}
    given = {split: path for split, path in files.items() if path}
    corpus = options.corpus
    if _no_corpus(options):
        folder = CACHE / f"positives-{key_of(*given.values(), *map(version_of, given.values()))}"
        words = [word for split, path in given.items() for word in (f"--{split}", path)]
        what = "make a corpus of the tasks' positives"
        prepare.append(
            module_command(
                what, "research.datasets.stack_exchange.positives", "--out", folder, *words, creates=folder
            )
        )
        corpus = folder / "corpus.jsonl"
        given = {split: folder / f"{split}.tasks.jsonl" for split in given}
    return Source(
        model=model,
        questions=given["train"],
        validation=given.get("validation"),
        test=given.get("test"),
        corpus=corpus,
        encoder=options.encoder or default_encoder,
        index=options.index or "bm25",
    )


def version_of(path: Path) -> tuple[int, int] | None:
    """Of a file of the user's, which may change under its name; None of one of ours, or one not there."""
    if path.is_relative_to(CACHE) or not path.exists():
        return None
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


RECIPES = {
    "musique": Recipe("musique", "--questions", _musique_cpu, _musique_gpu),
    "rqr": Recipe(
        "rqr",
        "--tasks",
        _rqr_cpu,
        _rqr_gpu,
        prepared=tuple(PREPARED / name for name in ("train.parquet", "dev.parquet", "corpus.jsonl")),
        encoder_key="research.rewriting.encoder",
    ),
}
