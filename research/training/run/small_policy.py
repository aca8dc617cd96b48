"""What --policy smollm2 trains on: real questions, their own paragraphs, a policy cold-started on some.

Everything is made in the run folder, except for the model and the cold-started policy, which are kept in the
cache: the same demonstrations and settings need no second training.
"""

from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from research.places import CACHE
from research.training.cold_start.split import Parts
from research.training.run.index import index_command
from research.training.run.options import OWN_CORPUS, SPLITS, Command, RecipeOptions, module_command

SMALL = "smollm2"
MODEL, SMOLLM2 = CACHE / "smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct"  # its folder, and its name
VALIDATION, TEST = 60, 100  # questions, for a curve and a table that say something
MANY = 10_000  # epochs, which the seconds bound
# What the demonstrations depend on: of the user's words, those about an episode.
EPISODE_KEYS = (
    *("research.prompt", "research.protocol", "research/protocol", "research.preset", "research.limits"),
    *("research.retriever", "research.tools", "data.max_response_length"),
)

Defaults = dict[str, tuple[Any, Command | None]]


def small_policy(options: RecipeOptions) -> Defaults:
    """See `Recipe`: MuSiQue, or the mini world's questions without a network; BM25 if there is no encoder."""
    folder = options.run_dir / "questions"
    words = ("--out", folder, "--seed", options.seed)
    fetched = _command("fetch MuSiQue, or make the mini world", "questions", *words, creates=folder)
    defaults: Defaults = {
        "encoder": ("minilm", None),
        "index": ("flat" if options.encoder or options.faiss_index else "bm25", None),
    }
    if options.questions is None:
        defaults |= {name: (folder / f"{split}.questions.jsonl", fetched) for split, name in SPLITS.items()}
    if options.model is None:
        defaults["model"] = (
            str(MODEL),
            _command("fetch SmolLM2-135M", "model", "--out", MODEL, creates=MODEL),
        )
    if options.corpus is None and options.retriever_url is None:
        own = (OWN_CORPUS, None)  # of the user's questions, see with_own_corpus
        defaults["corpus"] = (folder / "corpus.jsonl", fetched) if options.questions is None else own
    return defaults


def own_corpus(options: RecipeOptions) -> Path:
    """Where the paragraphs that the questions come with are written."""
    return options.run_dir / "corpus.jsonl"


def with_own_corpus(inputs: RecipeOptions) -> tuple[RecipeOptions, list[Command]]:
    """The corpus called ``dataset``: the paragraphs that the rows of the questions come with."""
    if inputs.corpus_word != OWN_CORPUS:
        return inputs, []
    corpus, files = own_corpus(inputs), inputs.splits.values()
    made = _command(
        "make a corpus of the questions' paragraphs", "corpus", "--out", corpus, *files, creates=corpus
    )
    return replace(inputs, corpus=corpus), [made]


def with_cold_start(options: RecipeOptions, inputs: RecipeOptions) -> tuple[RecipeOptions, list[Command]]:
    """The training questions without those of the cold start, and the policy that the cold start makes."""
    folder = inputs.run_dir / "cold_start"
    parts, shown, policy = folder / "parts", folder / "demonstrations.parquet", folder / "policy"
    asked, validation, test, rest = Parts.files(parts)
    how = how_parted(inputs)
    words = [*chain.from_iterable((f"--{name}", value) for name, value in how.items())]
    words += chain.from_iterable(("--held-out", file) for file in (inputs.validation, inputs.test) if file)
    index = index_command(options, inputs, inputs.corpus) if inputs.corpus else None
    seconds = ("--seconds", inputs.cold_start_seconds) if inputs.cold_start_seconds else ()
    commands = [
        _command(
            "part the questions of the cold start from the others",
            "split",
            *("--questions", inputs.questions, "--out", parts, *words),
            creates=parts,
        ),
        *filter(None, [index]),
        _demonstrations(inputs, asked, shown, index),
        _command(
            "cold-start the policy",
            *("train", "--demonstrations", shown, "--model", inputs.model, "--out", policy),
            *("--seed", inputs.seed, "--cache", CACHE, *seconds),
            creates=policy,
        ),
    ]
    held_out: dict[str, Any] = {"validation": validation, "test": test}
    made = {name: file for name, file in held_out.items() if name in how}
    return replace(inputs, questions=rest, model=str(policy), **made), commands


def how_parted(options: RecipeOptions) -> dict[str, Any]:
    """The arguments that the recipe gives to ``split`` and `parts_of`."""
    parted = {"seed": options.seed}
    if options.validation is None:
        parted |= {"validation": VALIDATION} | ({} if options.test else {"test": TEST})
    return parted | ({"comparisons": options.comparisons} if options.comparisons else {})


def supervised_control(
    inputs: RecipeOptions, folder: Path, seconds: str, index: Command | None
) -> list[Command]:
    """Train the cold-started policy for so many more seconds, also on demonstrations for GRPO's questions."""
    policy, shown = folder / "policy", folder / "demonstrations.parquet"
    train = _command(
        f"supervised control: continue the cold start on both demonstrations for {seconds} s",
        *("train", "--demonstrations", inputs.run_dir / "cold_start" / shown.name, "--demonstrations", shown),
        *("--model", inputs.model, "--out", policy, "--epochs", MANY, "--seconds", seconds),
        creates=policy,
    )
    task = "supervised control: demonstrate searching for the questions of GRPO"
    return [replace(_demonstrations(inputs, inputs.questions, shown, index), task=task), train]


def _demonstrations(
    inputs: RecipeOptions, questions: Path | None, out: Path, index: Command | None
) -> Command:
    """Demonstrations for a file of questions, with the run's own prompt, protocol, limits and retriever."""
    words = [each for each in inputs.overrides if each.lstrip("+").startswith(EPISODE_KEYS)]
    source = ("--index", index.creates) if index else ("--retriever", inputs.retriever_url)
    asked = ("--questions", questions, *source, "--model", inputs.model, "--out", out)
    return _command("demonstrate searching", "demonstrations", *asked, "--policy", SMALL, *words, creates=out)


def _command(task: str, command: str, *arguments: Any, creates: Path) -> Command:
    return module_command(task, "research.training", "cold-start", command, *arguments, creates=creates)
