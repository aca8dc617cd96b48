"""What a run needs, checked before it starts: files, disk, memory, GPUs, port, cluster. Says all that is
missing.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from data.hub import free_space, size_text
from data.wiki18 import required_files, space_needed
from research.training.hardware import gpu_memory
from research.training.options import CACHE
from research.training.plan import Plan
from research.training.sources import PREPARED, RECIPES

GB = 10**9
# A 7B model's training state is spread over the GPUs in float32 (weights, gradients; the optimiser sits in
# main memory), beside activations of one longest sequence.
GPU_BYTES_A_PARAMETER, GPU_BYTES_OF_ACTIVATIONS = 8, 10 * GB


def problems(plan: Plan) -> list[str]:
    """Every reason why the run cannot start, one line each."""
    checks = [_files(plan), _model(plan), _port(plan), _supervised(plan)]
    checks += [_gpu(plan), _wikipedia(plan)] if plan.options.hardware == "gpu" else [_cpu_disk(plan)]
    return [line for check in checks for line in check]


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
    if options.recipe == "rqr" and options.hardware == "gpu" and options.questions is None:
        for name in ("train.parquet", "dev.parquet", "corpus.jsonl"):
            if not (PREPARED / name).is_file():
                where = f"give --tasks, or run data/prepare_rqr.py --out {PREPARED}"
                yield f"there is no {PREPARED / name}: {where}"


def _model(plan: Plan) -> Iterator[str]:
    model = plan.options.model
    if model is None or not (os.path.sep in model and Path(model).is_absolute() or Path(model).exists()):
        return
    if not (Path(model) / "config.json").is_file():
        yield f"--model: {model} is not a folder with a Hugging Face model (config.json is missing)"


def _supervised(plan: Plan) -> Iterator[str]:
    if plan.options.supervised_control and (plan.options.model or plan.source.test is None):
        yield "--supervised-control: only the tiny policy and the mini world have demonstrations"


def _port(plan: Plan) -> Iterator[str]:
    options = plan.options
    if plan.serve is None or options.retriever_port == 0:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((options.retriever_host, options.retriever_port))
        except OSError as error:
            yield (
                f"--retriever-port: {options.retriever_host}:{options.retriever_port}: {error.strerror}; "
                "leave it out to take a free port"
            )


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
