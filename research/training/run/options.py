"""The recipes' command line as an object, the commands that a run consists of, and the error that ends it."""

import json
import shlex
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import click
from click import IntRange
from pydantic import ConfigDict, TypeAdapter

from research import values as rules
from research.files import write_atomically
from research.training.run_files import foreign_recipe, read_recipe
from research.validation import checked
from research.values import HUB_NAME, Rule
from retriever_server.indexes import KINDS


class RunFailed(click.ClickException):
    """The run cannot start or continue; the message, for the user, is one line."""


class Ruled(click.ParamType):
    """Texts that a rule allows; --help calls them by `name`."""

    def __init__(self, name: str, rule: rules.Rule) -> None:
        self.name, self.rule = name, rule

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not self.rule.holds(value):
            self.fail(f"it must be {self.rule.meaning}, not {value!r}", param, ctx)
        return str(value)


def text(value: str) -> str:
    """Arguments of a command, as a shell splits them. Raises ValueError for an open quote."""
    shlex.split(value)
    return value


FILE = click.Path(path_type=Path)
MODEL, KIND, HOST = (Ruled(name, rules.TEXT) for name in ("name|dir", "kind", "text"))
REPOSITORY = Ruled("name", Rule(lambda value: bool(HUB_NAME.fullmatch(str(value))), "NAME or OWNER/NAME"))
URL, KIND_HELP = Ruled("url", rules.URL), f"Kind of the index, of {', '.join(KINDS)}."
OWN_CORPUS, WIKI18 = Path("dataset"), Path("wiki18")
CORPUS_WORDS = (OWN_CORPUS, WIKI18)
"""What --corpus calls the paragraphs of the questions, and the Wikipedia of 2018"""
SPLITS = {"train": "questions", "validation": "validation", "test": "test"}
"""split -> the option that names its file"""


@dataclass(frozen=True)
class RecipeOptions:
    """The recipe's command line, saved as ``recipe.json`` in the run folder. None: by recipe and hardware.

    Fields are annotated with what parses them and with their help: one text for all recipes, or one for
    musique and one for rqr; an empty one means that rqr lacks the option. Defaults are in brackets.
    """

    hardware: Annotated[
        Literal["cpu", "gpu", "rehearsal"],
        click.Choice(["cpu", "gpu", "rehearsal"]),
        "Profile; rehearsal: the GPU profile on a CPU, two steps of a tiny model. [what this machine has]",
    ]
    run_dir: Annotated[Path, FILE, "Run folder; a run with a checkpoint resumes. [runs/train_RECIPE-TIME]"]
    recipe: str = "musique"
    model: Annotated[str | None, MODEL, "Policy to train: any HF causal LM. [Qwen2.5-7B-Instruct | tiny]"] = (
        None
    )
    policy: Annotated[
        Literal["tiny", "smollm2"],
        click.Choice(["tiny", "smollm2"]),
        "tiny, in the mini world on a CPU, or smollm2: SmolLM2-135M or any small --model, cold-started on "
        "demonstrations for real questions. [tiny]",
        "",
    ] = "tiny"
    cold_start_seconds: Annotated[
        float | None,
        rules.Number(0, min_open=True),
        "End the cold start of smollm2 after that long, if its epochs do not. [no bound]",
        "",
    ] = None
    comparisons: Annotated[
        int | None,
        click.IntRange(1),
        "Questions added for GRPO after the cold start of smollm2, at most, made of the gold facts of 2Wiki: "
        "which of two came first, whether two share a country. [none]",
        "",
    ] = None
    questions: Annotated[
        Path | None,
        FILE,
        "Training questions: FlashRAG's form, the official files of MuSiQue, HotpotQA and 2Wiki, or "
        "Search-R1's parquet. [MuSiQue | mini world]",
        "Rewriting tasks to train on (datasets/rewriting_tasks.py). [cache/rqr/train.parquet | mini world]",
    ] = None
    validation: Annotated[
        Path | None,
        FILE,
        "Questions that draw the curve; without it, some of --questions.",
        "Tasks that draw the curve; without it, some of --tasks.",
    ] = None
    test: Annotated[
        Path | None,
        FILE,
        "Questions asked only before and after training; without it and --validation, some of --questions. "
        "[MuSiQue | mini world]",
        "Tasks used only before and after training; without it and --validation, some of --tasks. "
        "[none | mini world]",
    ] = None
    corpus: Annotated[
        Path | None,
        FILE,
        'Passages, JSONL {"id","contents"}, or BEIR\'s; .gz too; dataset: the paragraphs that the '
        "questions come with; wiki18: Wikipedia of 2018, from the hub. [wiki18 | mini world]",
        'Passages that gold_ids name, JSONL {"id","contents"}. [the tasks\' positives | mini world]',
    ] = None
    faiss_index: Annotated[
        Path | None, FILE, "FAISS index of the corpus made elsewhere, adopted after a check.", ""
    ] = None
    encoder: Annotated[
        str | None,
        MODEL,
        "sentence-transformers model. [intfloat/e5-base-v2 | minilm]",
        "sentence-transformers model of embedding_gain, and of a dense index. "
        "[BAAI/bge-base-en-v1.5 | the mini world's, or minilm]",
    ] = None
    steps: Annotated[
        int | None, IntRange(1), "GRPO steps. [2 epochs | 40; smollm2: 24]", "GRPO steps. [150 | 40]"
    ] = None
    seed: Annotated[int, IntRange(0, 2**31 - 1), "Seed for the world, the data order and the sampling."] = 42
    passages: Annotated[int, IntRange(600), "Number of passages in the mini world.", ""] = 20000
    test_questions: Annotated[int, IntRange(1), "Number of its test questions per hop count.", ""] = 500
    supervised_control: Annotated[
        bool,
        click.BOOL,
        "Afterwards also train on clean demonstrations, for as long as the policy; the table has both.",
        "",
    ] = False
    index: Annotated[str | None, KIND, f"{KIND_HELP} [flat; smollm2: bm25]", f"{KIND_HELP} [bm25]"] = None
    build_args: Annotated[
        str, text, "Further options of `retriever_server build`: '--index-option M=48 --device cuda'."
    ] = ""
    serve_args: Annotated[
        str, text, "Further options of `retriever_server serve`: '--threads 4 --index-device auto'."
    ] = ""
    gpus: Annotated[int | None, IntRange(1), "GPUs per node. [all]"] = None
    gpu_memory: Annotated[
        int | None, IntRange(1), "GB of a GPU to plan for. [what is there; without a GPU, 80]"
    ] = None
    lora_rank: Annotated[
        int | None, IntRange(1), "Train low-rank adapters of all linear layers, and not the whole model."
    ] = None
    nodes: Annotated[int, IntRange(1), "More than 1: joins a Ray cluster."] = 1
    retriever_url: Annotated[
        str | None, URL, "A retrieval server that is already running; without it, one is started."
    ] = None
    retriever_host: Annotated[str, HOST, "Address that the started one binds."] = "127.0.0.1"
    retriever_port: Annotated[int, IntRange(0, 65535), "Its port. [a free one]"] = 0
    push_to_hub: Annotated[
        str | None,
        REPOSITORY,
        "At the end push the policy with a model card there, private if it is new; with --export, only that.",
    ] = None
    track: Annotated[
        tuple[Literal["wandb", "mlflow"], ...],
        click.Choice(["wandb", "mlflow"]),
        "Also log to this tracker: curves, guards and tables of episodes; may be given twice.",
    ] = ()
    overrides: tuple[str, ...] = ()

    __pydantic_config__ = ConfigDict(extra="forbid")

    @property
    def splits(self) -> dict[str, Path]:
        """The question files that were given, by split."""
        return {split: path for split, name in SPLITS.items() if (path := getattr(self, name))}

    @property
    def on_cpu(self) -> bool:
        """Whether no GPU is used."""
        return self.hardware != "gpu"

    @property
    def corpus_word(self) -> Path | None:
        """The word that stands for the corpus; rewriting tasks come with their own passages."""
        return self.corpus if self.recipe != "rqr" and self.corpus in CORPUS_WORDS else None

    @property
    def is_dense(self) -> bool:
        """Whether the index is of vectors, and not of words."""
        return not (self.index or "").startswith("bm25")

    def save(self, path: Path) -> None:
        """Write as JSON."""
        write_atomically(path, json.dumps(asdict(self), default=str, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "RecipeOptions":
        """The inverse of :meth:`save`. Raises DamagedFile for a file that is not of this version."""
        values = read_recipe(path)
        try:
            return checked(TypeAdapter(cls), values)
        except ValueError as error:
            raise foreign_recipe(path, str(error)) from error


@dataclass(frozen=True)
class Command:
    """One process of the recipe, which does a task. If ``creates`` exists, it is done already."""

    task: str
    argv: list[str]
    creates: Path | None = None

    @property
    def is_done(self) -> bool:
        """Whether what it creates is there."""
        return self.creates is not None and self.creates.exists()


def module_command(task: str, module: str, *arguments: Any, creates: Path | None = None) -> Command:
    """The command that runs a Python module of ours."""
    return Command(task, [sys.executable, "-m", module, *map(str, arguments)], creates)


def gpu_memory() -> list[int]:
    """Bytes of memory of each GPU of this machine; empty if there is none or no driver.

    According to the driver: importing torch for that takes seconds.
    """
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(query, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [int(line) * 2**20 for line in output.split("\n") if line.strip().isdigit()]
