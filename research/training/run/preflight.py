"""What a run needs, checked before it starts: files, disk, memory, GPUs, port, cluster. Says all that is
missing.
"""

import errno
import importlib.util
import ipaddress
import re
import shlex
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import click
import psutil
from omegaconf import DictConfig

from research.datasets.hub import free_space, size_text
from research.datasets.wiki18 import required_files, space_needed
from research.environments.controls import CLOSED_BOOK, SHUFFLED
from research.errors import DataError
from research.places import CACHE
from research.training.config import ResearchConfig, read_research_config
from research.training.rows import require_batch
from research.training.run.hardware import gpu_memory
from research.training.run.model_folder import folder_faults
from research.training.run.options import TOKEN
from research.training.run.plan import Plan
from research.training.run.retriever_keeper import is_healthy
from research.training.run.sources import RECIPES
from retriever_server.__main__ import build, serve
from retriever_server.errors import RetrieverError
from retriever_server.indexes import KINDS
from retriever_server.indexes.options import parse_options

GB = 10**9
# Modules that exist somewhere on most machines, and that no worker imports.
NOT_IMPORTED = {"__init__", "test", "tests", "scripts"}
HUB_NAME = re.compile(r"(?!.*(--|\.\.))\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
# A 7B model's training state is spread over the GPUs in float32 (weights, gradients; the optimiser sits in
# main memory), beside activations of one longest sequence.
GPU_BYTES_A_PARAMETER, GPU_BYTES_OF_ACTIVATIONS = 8, 10 * GB


def problems(plan: Plan) -> list[str]:
    """Every reason why the run cannot start, one line each."""
    checks = [
        _hiding(Path.cwd()),
        _files(plan),
        _models(plan),
        _port(plan),
        _reachable(plan),
        _retriever(plan),
        _retriever_words(plan),
        _supervised(plan),
    ]
    checks += [_gpu(plan), _wikipedia(plan)] if plan.options.hardware == "gpu" else [_cpu_disk(plan)]
    return [line for check in checks for line in check]


def _hiding(folder: Path) -> Iterator[str]:
    """Ray's workers look for modules first in the folder that the training is started from."""
    for path in sorted([*folder.glob("*.py"), *folder.glob("*/__init__.py")]):
        name = path.parent.name if path.name == "__init__.py" else path.stem
        spec = importlib.util.find_spec(name) if name.isidentifier() and name not in NOT_IMPORTED else None
        if spec and spec.has_location and not Path(str(spec.origin)).is_relative_to(folder):
            own = path.parent if path.name == "__init__.py" else path
            yield f"{own} would hide the module {spec.origin}: start from another folder, or rename it"


def _files(plan: Plan) -> Iterator[str]:
    options = plan.options
    given = {
        RECIPES[options.recipe].questions_option: options.questions,
        "--validation": options.validation,
        "--test": options.test,
        "--corpus": options.corpus,
        "--faiss-index": options.faiss_index,
    }
    for name, path in given.items():
        if path is not None and not path.is_file():
            yield f"{name}: there is no file {path}"
    recipe = RECIPES[options.recipe]
    if options.hardware == "gpu" and options.questions is None:
        for path in recipe.prepared:
            if not path.is_file():
                where = f"give {recipe.questions_option}, or run data/prepare_rqr.py --out {path.parent}"
                yield f"there is no {path}: {where}"


def file_problems(plan: Plan, config: DictConfig) -> list[str]:
    """What is wrong within the user's own files, which are read to their ends: the cold start and the index
    take minutes.
    """
    research = read_research_config(config.research)
    options, own = plan.options, {}
    for split in ("questions", "validation", "test"):
        if path := getattr(options, split):
            own[split] = path
    lines = [_faults(path, split, plan, config, research) for split, path in own.items()]
    return [line for each in [*lines, _corpus_faults(plan, research)] for line in each]


def _faults(path: Path, split: str, plan: Plan, config: DictConfig, research: ResearchConfig) -> list[str]:
    try:
        # Without a corpus the run's tasks are made of the positives of these.
        final = plan.source.questions == plan.options.questions
        count = len(research.environment.read(path, split, final))
        require_batch(count if split == "questions" else config.data.train_batch_size, config, path)
    except DataError as error:
        return [str(error)]
    return []


def _corpus_faults(plan: Plan, research: ResearchConfig) -> list[str]:
    """By the retrieval server's own reader, before its build."""
    corpus, (*_, last) = plan.options.corpus, plan.build
    if corpus is None or plan.serve is None or (last.creates and last.creates.exists()):
        return []
    from retriever_server.corpus import scan_corpus

    try:
        count = scan_corpus(corpus).count
    except RetrieverError as error:
        return [str(error)]
    if SHUFFLED in research.controls and count <= research.retriever.top_k:
        return [
            f"{corpus}: {count} passages, and research.retriever.top_k is {research.retriever.top_k}: the "
            "control shuffled would find what the question finds; give more, or "
            f"research.controls=[{CLOSED_BOOK}]"
        ]
    return []


# Options of the retrieval server's that are the recipe's own, and what stands for them there.
OWN_WORDS = {"--encoder", "--index", "--faiss-index"}, {"--host", "--port", "--token", "--die-with-parent"}


def _retriever_words(plan: Plan) -> Iterator[str]:
    """By the retrieval server's own command line."""
    options, kind = plan.options, plan.source.index
    if plan.serve is None:
        return
    if kind not in KINDS:
        yield f"--index: there is no kind {kind}; there are: {', '.join(KINDS)}"
        return
    for option, command, before, own in (
        ("--build-args", build, [__file__, "index"], OWN_WORDS[0]),
        ("--serve-args", serve, ["index"], OWN_WORDS[1]),
    ):
        words = shlex.split(getattr(options, option[2:].replace("-", "_")))
        for word in words:
            if word.split("=")[0] in own:
                there = "RETRIEVER_TOKEN in the environment" if "token" in word else "the recipe's own option"
                yield f"{option}: {word} is not for here; use {there}"
        try:
            given = command.make_context(command.name, [*before, *words]).params["index_options"]
            parse_options(kind, given)
        except (click.UsageError, RetrieverError) as error:
            yield f"{option}: {error.format_message() if isinstance(error, click.UsageError) else error}"


def _models(plan: Plan) -> Iterator[str]:
    model, encoder = plan.options.model, plan.options.encoder
    for option, name in {"--model": model, "--encoder": encoder}.items():
        if name is not None and not Path(name).exists() and not HUB_NAME.fullmatch(name):
            yield f"{option}: there is no folder {name}, and it is no name on the hub (NAME or OWNER/NAME)"
    if model is not None and Path(model).exists():
        for fault in folder_faults(Path(model)):
            yield f"--model: {model} is not a folder with a Hugging Face model ({fault})"


def _supervised(plan: Plan) -> Iterator[str]:
    if plan.options.supervised_control and (plan.options.model or plan.source.test is None):
        yield "--supervised-control: only the tiny policy and the mini world have demonstrations"


def _port(plan: Plan) -> Iterator[str]:
    host, port = plan.options.retriever_host, plan.options.retriever_port
    if plan.serve is None:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                yield f"--retriever-port: {host}:{port}: {error.strerror}; leave it out to take a free port"
            else:
                yield f"--retriever-host: {host!r} is no address of this machine: {error.strerror}"


def _reachable(plan: Plan) -> Iterator[str]:
    """The workers of all nodes search, so the retriever's address must mean this machine on all of them."""
    options = plan.options
    url = options.retriever_url
    host = (urlsplit(url).hostname or "") if url else options.retriever_host
    if options.nodes > 1 and _means_each_machine_itself(host):
        yield (
            f"{'--retriever-url' if url else '--retriever-host'}: with --nodes {options.nodes} the other "
            f"nodes search there, too, and {host} is each of them itself; give the address by which they "
            f"reach {'the retriever' if url else 'this machine'}"
        )


def _retriever(plan: Plan) -> Iterator[str]:
    url = plan.options.retriever_url
    if url and not is_healthy(url):
        yield f"--retriever-url: no healthy retriever at {url}; start it, and check host, port and {TOKEN}"


def _means_each_machine_itself(host: str) -> bool:
    """Whether the host is, or resolves to, a loopback or unspecified address."""
    try:
        found = [ipaddress.ip_address(each[4][0]) for each in socket.getaddrinfo(host, None)]
    except OSError:
        return False  # unknown from here: where it matters, binding or asking it fails
    plain = [getattr(address, "ipv4_mapped", None) or address for address in found]
    return any(address.is_loopback or address.is_unspecified for address in plain)


@contextmanager
def free_port(host: str) -> Iterator[int]:
    """A port on which no one listens, and which no one else is given until the block ends."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # who is told its number may listen there
        held.bind((host, 0))
        yield int(held.getsockname()[1])


def _cpu_disk(plan: Plan) -> Iterator[str]:
    yield from _disk(plan.options.run_dir, 1 * GB, "the run folder (checkpoints, trajectories)")


def _disk(path: Path, need: int, what: str) -> Iterator[str]:
    free = free_space(path)
    if free < need:
        yield f"disk: {what} in {path} needs {size_text(need)}, {size_text(free)} are free"


# ------------------------------------------------------------------------------------------------- GPU
# profile


def _gpu(plan: Plan) -> Iterator[str]:
    options, model, memory = plan.options, plan.source.model, gpu_memory()
    wanted = options.gpus or max(1, len(memory))
    if not memory:
        yield "GPU: nvidia-smi finds none; --hardware cpu runs the whole stack without"
        return
    if len(memory) < wanted:
        yield f"GPU: --gpus {wanted}, but this machine has {len(memory)}"
    size = model_bytes(model)
    if size is None:
        yield f"model: {model} is neither a local folder nor to be found on the hub from here"
        return
    parameters = size // 2  # published in bfloat16
    need = GPU_BYTES_A_PARAMETER * parameters // (wanted * options.nodes) + GPU_BYTES_OF_ACTIVATIONS
    if min(memory) < need:
        yield (
            f"GPU memory: {model} on {wanted * options.nodes} GPUs needs about {size_text(need)} a GPU, "
            f"there are {size_text(min(memory))}: use more GPUs or a smaller --model"
        )
    checkpoints = 2 * 12 * parameters  # two kept; weights and both Adam moments in float32
    yield from _disk(options.run_dir, checkpoints + size, "the run folder (checkpoints, exported policy)")


def model_bytes(model: str) -> int | None:
    """Size of a model's weight files, from its folder or from the hub; None if it is in neither."""
    if Path(model).is_dir():
        return sum(path.stat().st_size for path in Path(model).glob("*.safetensors"))
    from huggingface_hub import HfApi, snapshot_download

    try:
        files = HfApi().model_info(model, files_metadata=True, timeout=20).siblings or []
        return sum(file.size or 0 for file in files if file.rfilename.endswith(".safetensors"))
    except (
        Exception
    ):  # the hub library raises a dozen kinds for "not from here"; a cached copy will do as well
        try:
            folder = Path(snapshot_download(model, local_files_only=True))
        except Exception:
            return None
        return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _wikipedia(plan: Plan) -> Iterator[str]:
    """The 21 M-passage corpus and its index, if the plan uses them."""
    wiki = CACHE / "wiki18"
    if plan.source.corpus is None or plan.source.corpus.parent != wiki:
        return
    yield from _disk(wiki, space_needed(wiki), "Wikipedia 2018 and its E5 index")
    index = max(file.size for file in required_files(wiki))
    memory = psutil.virtual_memory().total
    if memory < index + 8 * GB:
        yield (
            f"memory: the E5 index is held in {size_text(index)} of main memory, this machine has "
            f"{size_text(memory)}; name a retriever elsewhere with --retriever-url"
        )
