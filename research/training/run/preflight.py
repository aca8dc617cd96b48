"""What a run needs, checked before it starts: files, disk, memory, GPUs, port, cluster."""

import errno
import importlib.util
import ipaddress
import shlex
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from itertools import combinations
from pathlib import Path
from urllib.parse import urlsplit

import click
from omegaconf import DictConfig

from research.datasets.hub import size_text
from research.datasets.questions import read_questions
from research.environments import EpisodeSettings, read_items
from research.environments.controls import CLOSED_BOOK, SHUFFLED
from research.errors import DataError, warn
from research.files import check_writable
from research.metrics.answers import normalize_answer
from research.model_folder import model_faults
from research.tools.search import TOKEN_VARIABLE
from research.training.cold_start.corpus import without_paragraphs
from research.training.cold_start.split import parts_of
from research.training.config import read_research_config
from research.training.rows import require_batch
from research.training.run.options import OWN_CORPUS, RecipeOptions, gpu_memory
from research.training.run.plan import RunPlan
from research.training.run.retriever_keeper import is_healthy
from research.training.run.small_policy import SMALL, how_parted, own_corpus
from research.training.run.sources import PREPARED, RECIPES
from research.training.run_files import latest_checkpoint
from research.training.sizes.disk import disk_faults
from research.training.sizes.memory import GB
from research.training.sizes.wikipedia import wikipedia_faults
from retriever_server.__main__ import build_command, serve
from retriever_server.errors import RetrieverError
from retriever_server.indexes import KINDS
from retriever_server.indexes.options import parse_options

# Modules that exist somewhere on most machines, and that no worker imports.
NOT_IMPORTED = {"__init__", "test", "tests", "scripts"}
# Options of the retrieval server that the recipe sets itself, when it builds and when it serves.
SET_BY_US = {
    "--build-args": {"--encoder", "--index", "--faiss-index", "--vectors"},
    "--serve-args": {"--host", "--port", "--token", "--die-with-parent"},
}


def problems(plan: RunPlan) -> list[str]:
    """Every reason why the run cannot start, one line each."""
    checks = [_hiding_modules, _missing_files, _models, _own_questions, _port, _retriever, _without_effect]
    checks += [_retriever_options, _run_folder, _hardware, wikipedia_faults, disk_faults]
    return [line for check in checks for line in check(plan)]


def _hiding_modules(plan: RunPlan) -> Iterator[str]:
    """Modules that would be hidden: Ray's workers look first in the folder where the training is started."""
    folder = Path.cwd()
    for path in sorted([*folder.glob("*.py"), *folder.glob("*/__init__.py")]):
        own = path.parent if path.name == "__init__.py" else path
        name = own.name.removesuffix(".py")
        spec = importlib.util.find_spec(name) if name.isidentifier() and name not in NOT_IMPORTED else None
        if spec is None or not spec.has_location:
            continue
        if not Path(str(spec.origin)).resolve().is_relative_to(folder.resolve()):
            yield f"{own} would hide the module {spec.origin}: start from another folder, or rename it"


def _missing_files(plan: RunPlan) -> Iterator[str]:
    options, recipe = plan.options, RECIPES[plan.options.recipe]
    files = {recipe.questions_option: options.questions, "--faiss-index": options.faiss_index}
    files |= {f"--{name}": getattr(options, name) for name in ("validation", "test", "corpus")}
    for name, path in files.items():
        word = name == "--corpus" and options.corpus_word
        if path is not None and not word and not path.is_file():
            yield f"{name}: {path} is a folder" if path.is_dir() else f"{name}: there is no file {path}"
    for path in filter(None, (plan.inputs.questions, plan.inputs.validation, plan.inputs.corpus)):
        if path.parent == PREPARED and not path.is_file():
            remedy = f"give {recipe.questions_option}, or run data/prepare_rqr.py --out {path.parent}"
            yield f"there is no {path}: {remedy}"


def file_problems(plan: RunPlan, config: DictConfig) -> list[str]:
    """Faults of the user's own files, found before cold start and index, which take minutes."""
    environment, options = read_research_config(config.research).environment, plan.options
    # Without a corpus, the tasks of the run are made from the positives of these.
    final = plan.inputs.questions == options.questions
    lines: list[str] = []
    texts: dict[Path, set[str]] = {}
    for split, path in options.splits.items():
        if not path.is_file():  # said by `problems`
            continue
        try:
            items = read_items(environment, path, split, final)
            count, texts[path] = len(items), {normalize_answer(item.question) for item in items}
            if plan.inputs.corpus == own_corpus(options):
                lines += _paragraph_faults(split, path)
            if split == "train":
                which = ""
                if options.policy == SMALL:  # some of them are for the cold start
                    left = parts_of(read_questions(path), path, **how_parted(options)).rest
                    count, which = (
                        len(left),
                        f" left of {count} after those for cold start, validation and test",
                    )
                require_batch(count, config, path, which)
        except DataError as error:
            lines.append(str(error))
    _warn_of_leaks(options, texts)
    corpus = options.corpus if options.corpus == plan.inputs.corpus else None  # not one that is made
    if corpus and corpus.is_file() and plan.serve and not plan.build[-1].is_done:
        lines += _corpus_faults(corpus, environment.settings)
    return lines


def _paragraph_faults(split: str, path: Path) -> Iterator[str]:
    """Faults of a corpus made of the questions' paragraphs; test questions may do without their own."""
    without, rows = without_paragraphs(path)
    if without == rows and split == "train":
        yield f"{path}: the questions come without paragraphs to make a corpus of; give --corpus FILE"
    elif without:
        warn(f"{path}: {without} of its {rows} questions come without paragraphs: the corpus may lack theirs")


def _warn_of_leaks(options: RecipeOptions, texts: dict[Path, set[str]]) -> None:
    """Warn of questions that two splits share: results on them say little."""
    for (split, path), (_, other) in combinations(reversed(options.splits.items()), 2):
        if shared := len(texts.get(path, set()) & texts.get(other, set())):
            warn(f"{path}: {shared} of its {len(texts[path])} questions ({split}) are also in {other}")


def _corpus_faults(corpus: Path, settings: EpisodeSettings) -> Iterator[str]:
    """Faults of the corpus, found by the retrieval server's own reader before the build."""
    from retriever_server.corpus import scan_corpus

    try:
        count = scan_corpus(corpus).count
    except RetrieverError as error:
        yield str(error)
        return
    top_k = settings.retriever.top_k
    if SHUFFLED in settings.controls and count <= top_k:
        yield (
            f"{corpus}: {count} passages, and research.retriever.top_k is {top_k}: the control shuffled "
            f"would find what the question finds; give more, or research.controls=[{CLOSED_BOOK}]"
        )


def _models(plan: RunPlan) -> Iterator[str]:
    options = plan.options
    if options.model:
        yield from (f"--model: {fault}" for fault in model_faults(options.model))
    if options.encoder and not Path(options.encoder).exists():  # a folder is checked where it is loaded
        yield from (f"--encoder: {fault}" for fault in model_faults(options.encoder))
    if not options.supervised_control:
        return
    if options.policy != SMALL and options.model:
        yield "--supervised-control: there are demonstrations for --policy smollm2 and the tiny policy alone"
    elif plan.inputs.test is None:
        yield "--supervised-control: it is judged by test questions, and there are none; give --test"


def _own_questions(plan: RunPlan) -> Iterator[str]:
    """Faults with the run's own questions: smollm2's come with paragraphs but without gold facts."""
    options = plan.options
    if options.questions is not None or (options.run_dir / "recipe.json").exists():
        return
    if options.corpus_word == OWN_CORPUS and options.policy != SMALL and options.on_cpu:
        yield "--corpus dataset: the mini world's questions come without paragraphs; leave it out"
    if options.policy != SMALL:
        return
    if options.comparisons:
        yield (
            "--comparisons: they are made of 2Wiki's evidences, which the questions of the profile do not "
            "have; give --questions"
        )
    brought = [f"--{name}" for name in ("validation", "test") if getattr(options, name)]
    if brought and options.corpus is None and options.retriever_url is None:
        yield (
            f"{', '.join(brought)}: the corpus is that of the profile's own questions; give --questions as "
            "well, or a --corpus that holds the passages of both"
        )


# ------------------------------------------------------------------------------------------- retriever


def _retriever(plan: RunPlan) -> Iterator[str]:
    """Faults of the retriever's address, which must mean the same machine for the workers of all nodes."""
    options, url = plan.options, plan.options.retriever_url
    option, target = ("--retriever-url", "the retriever") if url else ("--retriever-host", "this machine")
    host = (urlsplit(url).hostname or "") if url else options.retriever_host
    if options.nodes > 1 and _is_local_everywhere(host):
        yield (
            f"{option}: with --nodes {options.nodes} the other nodes search there too, and {host} is each of "
            f"them itself; give the address at which they reach {target}"
        )
    if url and not is_healthy(url):
        yield f"--retriever-url: no healthy retriever at {url}; check host, port and {TOKEN_VARIABLE}"


def _without_effect(plan: RunPlan) -> Iterator[str]:
    """Options that have no effect because of another one.

    Rewriting has other uses for encoder and corpus; a run that resumes may go on with a retriever elsewhere.
    """
    options = plan.options
    if options.recipe == "rqr" or (options.run_dir / "recipe.json").exists():
        return
    searched = ("corpus", "index", "encoder", "faiss_index", "build_args", "serve_args")
    for option, others in {
        "--policy tiny": ("cold_start_seconds", "comparisons") if options.policy == "tiny" else (),
        "--retriever-url": searched if options.retriever_url else (),
        f"--index {options.index}": () if options.is_dense else ("encoder", "faiss_index"),
    }.items():
        given = [f"--{name.replace('_', '-')}" for name in others if getattr(options, name)]
        if given:
            yield f"{', '.join(given)}: without effect beside {option}; leave out the one or the other"


def _is_local_everywhere(host: str) -> bool:
    """Whether the host is, or resolves to, a loopback or unspecified address."""
    try:
        addresses = [ipaddress.ip_address(each[4][0]) for each in socket.getaddrinfo(host, None)]
    except OSError:
        return False  # unknown here: where it matters, binding it or connecting to it fails
    plain = [getattr(address, "ipv4_mapped", None) or address for address in addresses]
    return any(address.is_loopback or address.is_unspecified for address in plain)


def _retriever_options(plan: RunPlan) -> Iterator[str]:
    """Faults of its options, found by the retrieval server's own command line."""
    options, kind = plan.options, str(plan.inputs.index)
    if plan.serve is None:
        return
    if kind not in KINDS:
        yield f"--index: there is no kind {kind}; there are: {', '.join(KINDS)}"
        return
    for option, text, command, before in (
        ("--build-args", options.build_args, build_command, [__file__, "index"]),
        ("--serve-args", options.serve_args, serve, ["index"]),
    ):
        words = shlex.split(text)
        for word in words:
            if word.split("=")[0] in SET_BY_US[option]:
                remedy = (
                    f"{TOKEN_VARIABLE} in the environment" if "token" in word else "the recipe's own option"
                )
                yield f"{option}: {word} cannot be given here; use {remedy}"
        try:
            context = command.make_context(command.name, [*before, *words])
            parse_options(kind, context.params["index_options"])
        except (click.UsageError, RetrieverError) as error:
            yield f"{option}: {error.format_message() if isinstance(error, click.UsageError) else error}"


def _port(plan: RunPlan) -> Iterator[str]:
    host, port = plan.options.retriever_host, plan.options.retriever_port
    try:
        with free_port(host, port if plan.serve else 0):
            return
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            yield f"--retriever-port: {host}:{port}: {error.strerror}; leave it out to take a free port"
        else:
            yield f"--retriever-host: {host!r} is no address of this machine: {error.strerror}"


@contextmanager
def free_port(host: str, port: int = 0) -> Iterator[int]:
    """Hold a free port (0: any) until the block ends, so that no other process is given it."""
    with socket.socket() as held:
        # Processes that we tell the number may listen on it; the name keeps other runs from binding it.
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind((host, port))
        number = int(held.getsockname()[1])
        with socket.socket(socket.AF_UNIX) as name:
            with nullcontext() if port else suppress(OSError):  # the system does not give one out twice
                name.bind(f"\0research-rl retriever {number}")  # gone with the process, unlike a file
            yield number


# ------------------------------------------------------------------------------------------ hardware


def checkpoint_faults(run_dir: Path, config: DictConfig) -> Iterator[str]:
    """Faults of resuming on another number of GPUs: veRL's checkpoints have one file for each."""
    step, ranks = latest_checkpoint(run_dir), config.trainer.n_gpus_per_node * config.trainer.nnodes
    files = (run_dir / f"checkpoints/global_step_{step}/actor").glob("model_world_size_*_rank_0.pt")
    written = [int(file.name.split("_")[3]) for file in files]
    if written and ranks not in written:
        yield (
            f"--gpus, --nodes: the checkpoint of step {step} was written by {written[0]} GPUs and is loaded "
            f"by as many, not by {ranks}"
        )


def _run_folder(plan: RunPlan) -> Iterator[str]:
    try:
        check_writable(plan.options.run_dir)
    except OSError as error:
        yield f"--run-dir: {plan.options.run_dir} cannot be written ({error.strerror or error})"


def _hardware(plan: RunPlan) -> Iterator[str]:
    options = plan.options
    if options.on_cpu:
        for name in ("gpus", "gpu_memory"):
            if getattr(options, name):
                yield f"--{name.replace('_', '-')}: only with --hardware gpu; leave it out"
        return
    memory = gpu_memory()
    count = options.gpus or max(1, len(memory))
    if not memory:
        yield "GPU: nvidia-smi finds none; --hardware cpu runs the whole stack without"
        return
    if len(memory) < count:
        yield f"GPU: --gpus {count}, but this machine has {len(memory)}"
    if options.gpu_memory and options.gpu_memory * GB > min(memory):
        yield f"--gpu-memory {options.gpu_memory}: a GPU of this machine has {size_text(min(memory))}"
