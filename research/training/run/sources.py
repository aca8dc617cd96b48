"""What each recipe trains on by default, by hardware, and the commands that make it."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from research.places import CACHE, PACKAGE
from research.training.run.index import cache_key, version_of
from research.training.run.options import SPLITS, WIKI18, Command, RecipeOptions, module_command
from research.training.run.small_policy import SMALL, small_policy, with_cold_start, with_own_corpus

WIKI18_ENCODER = "intfloat/e5-base-v2"
GPU_MODEL, SEARCH_R1_MODEL = "Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-3B"
PREPARED = CACHE / "rqr"  # by data/prepare_rqr.py

Defaults = dict[str, tuple[Any, Command | None]]
"""field of the options -> (what it is if it is None, the command that makes that)"""


@dataclass(frozen=True)
class Recipe:
    """A training: recipes/train_NAME.sh, research/config/train_NAME.yaml, runs/train_NAME-TIME.

    Attributes:
        questions_option: the option for the training questions.
        encoder_key: a key of the configuration for the encoder.
        config: research/config/train_CONFIG.yaml and its folder CONFIG, if they are another recipe's.
        preset: the file of CONFIG/preset by hardware, if it is not the default one.
        known: the presets whose protocol the tiny policy of a CPU knows.
        help_words: what --help says in place of the other recipe's defaults.
    """

    questions_option: str
    cpu: Callable[[RecipeOptions], Defaults]
    gpu: Callable[[RecipeOptions], Defaults]
    encoder_key: str = ""
    config: str = ""
    preset: str = ""
    known: tuple[str, ...] = ("own", "reference")
    help_words: tuple[tuple[str, str], ...] = ()


def completed(options: RecipeOptions) -> tuple[RecipeOptions, list[Command]]:
    """The options with everything that a run needs, and the commands that make its defaults.

    `corpus` alone may still be None: a retriever runs elsewhere. Tasks without a corpus are replaced by tasks
    whose corpus is made of their positives.
    """
    recipe = RECIPES[options.recipe]
    small = options.policy == SMALL
    defaults = (small_policy if small else recipe.cpu if options.on_cpu else recipe.gpu)(options)
    if options.corpus_word == WIKI18:
        options = replace(options, corpus=None)
        defaults = defaults | _wikipedia(replace(options, index=options.index or defaults["index"][0]))
    taken = {name: default for name, default in defaults.items() if getattr(options, name) is None}
    commands = {command.creates: command for _, command in taken.values() if command}
    inputs = replace(options, **{name: value for name, (value, _) in taken.items()})
    inputs, own = with_own_corpus(inputs)
    if small:
        inputs, cold_start = with_cold_start(options, inputs)
        own += cold_start
    if not _needs_corpus(inputs):
        return inputs, [*commands.values(), *own]
    inputs, positives = _with_positives(inputs)
    return inputs, [*commands.values(), positives]


def _generator(task: str, module: str, *arguments: Any) -> tuple[str, Command]:
    """The cache folder of a generator's output, whose name includes a key of its code, and its command."""
    code = sorted((PACKAGE / "datasets").glob("mini*/*.py"))
    digests = (hashlib.sha256(path.read_bytes()).hexdigest() for path in code)
    folder = CACHE / f"{module.replace('.', '_')}-{cache_key(*arguments, *digests)}"
    module = f"research.datasets.{module}"
    return str(folder), module_command(task, module, "--out", folder, *arguments, creates=folder)


def _needs_corpus(options: RecipeOptions) -> bool:
    return options.corpus is None and options.retriever_url is None


def _splits(options: RecipeOptions, pattern: str, made: Command | None) -> Defaults:
    """The files of all splits, unless the user brought one to train on."""
    if options.questions is not None:
        return {}
    return {name: (Path(pattern.format(split)), made) for split, name in SPLITS.items()}


def _corpus(options: RecipeOptions, path: str, made: Command | None) -> Defaults:
    return {"corpus": (Path(path), made)} if _needs_corpus(options) else {}


def _wikipedia(options: RecipeOptions) -> Defaults:
    """The Wikipedia of 2018, with its E5 index unless the run has its own, or makes one without."""
    wiki, module = CACHE / WIKI18, "research.datasets.wiki18"
    corpus, index = wiki / "wiki-18.jsonl", wiki / "e5_Flat.index"
    encoder: Defaults = {"encoder": (WIKI18_ENCODER, None)}
    if options.faiss_index or not options.is_dense or options.encoder not in (None, WIKI18_ENCODER):
        words = ("download Wikipedia 2018", module, "--out", wiki, "--only", "corpus")
        return encoder | _corpus(options, str(corpus), module_command(*words, creates=corpus))
    made = module_command("download Wikipedia 2018 and its E5 index", module, "--out", wiki, creates=index)
    passages = _corpus(options, str(corpus), made)
    return encoder | passages | ({"faiss_index": (index, None)} if passages else {})


def _musique_cpu(options: RecipeOptions) -> Defaults:
    """The tiny policy, and the mini world with its encoder unless the user brought questions or a corpus."""
    sizes = ("--seed", options.seed, "--passages", options.passages, "--test", options.test_questions)
    world, made = _generator("make the mini world", "mini.world", *sizes)
    own = _needs_corpus(options) and options.is_dense
    return {
        **_splits(options, world + "/{}.questions.jsonl", made),
        **_corpus(options, world + "/corpus.jsonl", made),
        "encoder": _generator("make the mini encoder", "mini.encoder") if own else ("minilm", None),
        "model": _generator("cold-start the tiny policy", "mini.policy", "--seed", options.seed),
        "index": ("flat", None),
    }


def _musique_gpu(options: RecipeOptions) -> Defaults:
    """MuSiQue, Wikipedia of 2018 with its E5 index, Qwen2.5-7B-Instruct, unless the user brought others."""
    musique = CACHE / "musique"
    words = ("download MuSiQue", "research.datasets.musique", "--out", musique)
    made = module_command(*words, creates=musique / "test.questions.jsonl")
    return {
        **_splits(options, f"{musique}/{{}}.questions.jsonl", made),
        **_wikipedia(options),
        "model": (GPU_MODEL, None),
        "index": ("flat", None),
    }


def _search_r1_cpu(options: RecipeOptions) -> Defaults:
    """The mini world, and a tiny policy that knows Search-R1's protocol."""
    words = ("--seed", options.seed, "--protocol", "search_r1")
    return _musique_cpu(options) | {"model": _generator("cold-start the tiny policy", "mini.policy", *words)}


def _search_r1_gpu(options: RecipeOptions) -> Defaults:
    """NQ and HotpotQA, Wikipedia of 2018 with its E5 index, Qwen2.5-3B, unless the user brought others."""
    folder = CACHE / "nq_hotpotqa"
    questions = ("download NQ and HotpotQA", "research.datasets.nq_hotpotqa", "--out", folder)
    made = module_command(*questions, creates=folder / "test.questions.jsonl")
    splits = _splits(options, f"{folder}/{{}}.questions.jsonl", made)
    return _musique_gpu(options) | splits | {"model": (SEARCH_R1_MODEL, None)}


def _rqr_cpu(options: RecipeOptions) -> Defaults:
    """The tiny rewriting policy, and the mini rewriting world unless the user brought tasks."""
    world, made = _generator("make the mini rewriting world", "mini_rewriting.world", "--seed", options.seed)
    encoder = _generator("make its encoder", "mini_rewriting.encoder")
    own = options.questions is None
    return {
        **_splits(options, world + "/{}.tasks.jsonl", made),
        **(_corpus(options, world + "/corpus.jsonl", made) if own else {}),
        "encoder": encoder if own else ("minilm", None),
        "model": _generator("cold-start the tiny policy", "mini_rewriting.policy", "--seed", options.seed),
        "index": ("bm25", None),
    }


def _rqr_gpu(options: RecipeOptions) -> Defaults:
    """Qwen2.5-7B-Instruct, and what data/prepare_rqr.py has written to PREPARED unless tasks are named."""
    prepared = {
        "questions": (PREPARED / "train.parquet", None),
        "validation": (PREPARED / "dev.parquet", None),
        **_corpus(options, f"{PREPARED}/corpus.jsonl", None),
    }
    return {
        **(prepared if options.questions is None else {}),
        "encoder": ("BAAI/bge-base-en-v1.5", None),
        "model": (GPU_MODEL, None),
        "index": ("bm25", None),
    }


def _with_positives(inputs: RecipeOptions) -> tuple[RecipeOptions, Command]:
    """Tasks with the corpus of their positives."""
    tasks = inputs.splits
    folder = CACHE / f"positives-{cache_key(*tasks.values(), *map(version_of, tasks.values()))}"
    command = ("make a corpus of the tasks' positives", "research.datasets.stack_exchange.positives")
    arguments = [each for split, path in tasks.items() for each in (f"--{split}", path)]
    files: dict[str, Any] = {SPLITS[split]: folder / f"{split}.tasks.jsonl" for split in tasks}
    made = replace(inputs, corpus=folder / "corpus.jsonl", **files)
    return made, module_command(*command, "--out", folder, *arguments, creates=folder)


RECIPES = {
    "musique": Recipe("--questions", _musique_cpu, _musique_gpu),
    "search_r1": Recipe(
        "--questions",
        _search_r1_cpu,
        _search_r1_gpu,
        config="musique",
        preset="search_r1_{hardware}",
        known=("search_r1_cpu",),
        help_words=(
            ("Qwen2.5-7B-Instruct", "Qwen2.5-3B"),
            ("[MuSiQue", "[NQ and HotpotQA"),
            ("2 epochs", "1005"),
        ),
    ),
    "rqr": Recipe("--tasks", _rqr_cpu, _rqr_gpu, encoder_key="research.rewriting.encoder"),
}
