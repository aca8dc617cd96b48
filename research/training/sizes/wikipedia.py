"""What a run takes that searches the Wikipedia of 2018: main memory, memory of GPUs, disk."""

import shlex
from collections.abc import Iterator

import psutil

from research.datasets.hub import size_text
from research.datasets.wiki18 import CORPUS, DIMENSION, INDEX, space_needed
from research.errors import warn
from research.places import CACHE
from research.training.run.options import WIKI18
from research.training.run.plan import RunPlan
from research.training.run.sources import WIKI18_ENCODER
from research.training.sizes.memory import GB
from research.training.sizes.model import vector_width

# Of the index of E5's vectors by kind, built or searched: docs/retriever.md, "Kinds of index".
WIKI18_MEMORY = {
    "flat": 65 * GB,
    "flat_fp16": 32 * GB,
    "sq8": 16 * GB,
    "hnsw": 39 * GB,
    "ivfpq": 24 * GB,
    "hybrid": 65 * GB,
}
ON_CARDS = ("flat", "flat_fp16")  # kinds that GPUs search, in half precision
READ_AS_IT_IS = ("flat", "hybrid")  # kinds that search the downloaded file itself
MINILM_WIDTH = 384  # of the encoder that comes in a wheel, under the name minilm
OTHERS = 8 * GB  # that the smallest run takes beside its index


def memory_of_index(plan: RunPlan) -> int:
    """Bytes of main memory that the index of Wikipedia takes; 0 if the run serves another, or none."""
    return _by_width(WIKI18_MEMORY.get(_kind(plan), 0), plan) if _is_searched(plan) else 0


def card_memory_of_index(plan: RunPlan) -> int:
    """Bytes that it takes on all GPUs of the node that serves it (``--serve-args '--index-device ...'``)."""
    words = shlex.split(plan.options.serve_args or "")
    device = [word.partition("=")[2] for word in words if word.startswith("--index-device=")]
    device += [value for word, value in zip(words, words[1:], strict=False) if word == "--index-device"]
    on_cards = not plan.options.on_cpu and _kind(plan) in ON_CARDS and {*device} & {"auto", "gpu"}
    return _by_width(WIKI18_MEMORY["flat_fp16"], plan) if on_cards and _is_searched(plan) else 0


def space_for_wikipedia(plan: RunPlan) -> tuple[int, str]:
    """Bytes of disk that its files and its index still need, and what they are."""
    if not _is_searched(plan):
        return 0, ""
    vectors = plan.inputs.faiss_index is not None and plan.inputs.faiss_index.parent == CACHE / WIKI18
    names, what = ((CORPUS, INDEX), " and its E5 index") if vectors else ((CORPUS,), "")
    is_made = not (vectors and _kind(plan) in READ_AS_IT_IS) and not all(each.is_done for each in plan.build)
    made = memory_of_index(plan) if is_made else 0
    what += f" and the {_kind(plan)} index that is built" if made else ""
    return space_needed(CACHE / WIKI18, names) + made, f"Wikipedia 2018{what}"


def wikipedia_faults(plan: RunPlan) -> Iterator[str]:
    """Why this machine cannot search it; warns where that would be slow."""
    index, memory = memory_of_index(plan), psutil.virtual_memory().total
    if index and _kind(plan) == "flat" and "--index-device" not in plan.options.serve_args:
        warn(
            f"exact search of Wikipedia reads {size_text(index)} for each batch of queries: too slow for "
            "training on few cores. Give --index ivfpq, or --serve-args '--index-device auto' where GPUs "
            "have room for it"
        )
    hint = "--index ivfpq would fit; or " if memory >= WIKI18_MEMORY["ivfpq"] + OTHERS else ""
    if index and memory < index + OTHERS:
        yield (
            f"memory: the index of Wikipedia takes {size_text(index)} of main memory, the rest of a run at "
            f"least {size_text(OTHERS)}, and this machine has {size_text(memory)}; {hint}name a retriever "
            "elsewhere with --retriever-url"
        )


def _by_width(size: int, plan: RunPlan) -> int:
    """Vectors of another encoder are taken to grow with their width."""
    encoder = str(plan.inputs.encoder)
    if not size or encoder == WIKI18_ENCODER:
        return size
    width = MINILM_WIDTH if encoder == "minilm" else vector_width(encoder)
    return size * (width or DIMENSION) // DIMENSION


def _kind(plan: RunPlan) -> str:
    return plan.inputs.index or "flat"


def _is_searched(plan: RunPlan) -> bool:
    return plan.inputs.corpus is not None and plan.inputs.corpus.parent == CACHE / WIKI18
