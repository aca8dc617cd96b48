"""The index kinds side by side: recall against flat, size, memory, time to build and speed, as a table.

    python -m benchmarks.index_kinds --corpus A.corpus.jsonl --corpus B.corpus.jsonl \\
        --questions A.questions.jsonl --work DIR

Real passages and real questions are encoded with `minilm`. Rows up to --rows are made up: a real vector,
moved along the difference of two other real vectors by as much as real vectors are from their nearest
neighbours, and scaled to length 1. So made-up rows lie where passages lie, not anywhere in space. DIR keeps
what was encoded, for the next time. Each kind is built, and then searched, in a process of its own.
"""

import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np

from retriever_server.corpus import read_documents

WIKI_ROWS, WIKI_DIMENSION = 21_015_324, 768
VECTORS = "vectors.faiss"
QUERIES = "queries.npy"
TOP_K = 10
BATCH = 64
SAMPLE_ROWS = 2000
ENCODED_ROWS = 512
GB = 1e9
EXHAUSTIVE = ("flat", "flat_fp16", "sq8")
DEFAULT_KINDS = ("flat", "flat_fp16", "sq8", "hnsw", "ivfpq")


class Figures(NamedTuple):
    """Of one kind: `rows` found [q, TOP_K], bytes, seconds, queries a second."""

    rows: np.ndarray
    disk: int
    resident: int
    build_s: float
    build_memory: int
    single: float
    batched: float


@click.command()
@click.option("--corpus", "corpora", multiple=True, required=True, type=click.Path(path_type=Path))
@click.option("--questions", multiple=True, required=True, type=click.Path(path_type=Path))
@click.option(
    "--work", required=True, type=click.Path(path_type=Path), help="Folder for vectors and indexes."
)
@click.option("--rows", default=200_000, show_default=True, help="Real and made-up rows together.")
@click.option("--threads", default=1, show_default=True)
@click.option("--kind", "kinds", multiple=True, help='As "hnsw" or "hnsw:M=16,efSearch=64".  [default: all]')
def main(corpora: tuple, questions: tuple, work: Path, rows: int, threads: int, kinds: tuple) -> None:
    """Print a Markdown table of the kinds."""
    work.mkdir(parents=True, exist_ok=True)
    prepare(corpora, questions, work, rows, threads)
    print("| kind | recall@5 | recall@10 | B a passage | resident | build | q/s, one | q/s, 64 |")
    print("|---|---|---|---|---|---|---|---|")
    measured: dict[str, Figures] = {}
    truth = None
    for kind in kinds or DEFAULT_KINDS:
        figures = measure(kind, work, threads)
        truth = exact_rows(work) if truth is None else truth
        measured[kind] = figures
        print(line(kind, figures, truth, rows), flush=True)
    print(f"\nWikipedia 2018, {WIKI_ROWS:,} passages of {WIKI_DIMENSION} numbers (extrapolated):\n")
    print("| kind | on disk | to build | q/s, one | q/s, 64 |\n|---|---|---|---|---|")
    for kind, figures in measured.items():
        print(wiki_line(kind, figures, rows))


def prepare(corpora: tuple, questions: tuple, work: Path, rows: int, threads: int) -> None:
    """Write VECTORS and QUERIES into `work`."""
    from retriever_server.indexes.flat import FlatWriter
    from retriever_server.models.encoder import Encoder, set_threads

    set_threads(threads)
    encoder = Encoder("minilm")
    texts = list({document.contents: None for path in corpora for _, document in read_documents(path)})
    real = encode(encoder, texts, work / "real.faiss")
    asked = [json.loads(text)["question"] for path in questions for text in path.read_text().splitlines()]
    np.save(work / QUERIES, encoder.encode_queries(asked))
    (work / VECTORS).unlink(missing_ok=True)
    with FlatWriter(work / VECTORS, rows, real.shape[1]) as file:
        file.append(real[:rows])
        file.append(made_up(real, rows - len(real[:rows])))
    print(
        f"{min(rows, len(real)):,} real rows of {rows:,}, {len(np.load(work / QUERIES)):,} real questions\n"
    )


def encode(encoder: Any, texts: list[str], path: Path) -> np.ndarray:
    """float32 [texts, dimension], from the flat index file `path` as far as it goes, which gets the rest."""
    from retriever_server.indexes.flat import FlatWriter, map_vectors

    with FlatWriter(path, len(texts), encoder.dimension) as file:
        for start in range(file.rows, len(texts), ENCODED_ROWS):
            print(f"encoding passage {start:,} of {len(texts):,}", file=sys.stderr)
            file.append(encoder.encode_passages(texts[start : start + ENCODED_ROWS]))
    return np.array(map_vectors(path))


def made_up(real: np.ndarray, count: int) -> np.ndarray:
    """float32 [count, dimension] in the neighbourhood of real vectors; see the head of this file."""
    random = np.random.default_rng(0)
    start, one, other = random.integers(len(real), size=(3, count))
    moves = real[one] - real[other]
    moves /= np.linalg.norm(moves, axis=1, keepdims=True) + 1e-9
    moved = real[start] + moves * random.choice(neighbour_distances(real), size=(count, 1))
    return moved / np.linalg.norm(moved, axis=1, keepdims=True)


def neighbour_distances(real: np.ndarray) -> np.ndarray:
    """How far each of SAMPLE_ROWS real vectors is from the real vector nearest to it."""
    sample = np.random.default_rng(1).choice(len(real), size=min(SAMPLE_ROWS, len(real)), replace=False)
    products = real[sample] @ real.T
    products[np.arange(len(sample)), sample] = -1  # itself
    distances: np.ndarray = np.sqrt(np.maximum(0, 2 - 2 * products.max(axis=1)))
    return distances.astype(np.float32)


def measure(kind: str, work: Path, threads: int) -> Figures:
    """Build the kind, and search it with all questions."""
    build_s, build_memory, disk = in_own_process(build, kind, work, threads)
    return Figures(
        disk=disk, build_s=build_s, build_memory=build_memory, **in_own_process(search, kind, work, threads)
    )


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function` returns in a fresh process, so that its memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def build(kind: str, work: Path, threads: int) -> tuple[float, int, int]:
    """(seconds, bytes of memory at most, bytes on disk)."""
    from retriever_server.indexes import IndexSources, index_class
    from retriever_server.models.encoder import set_threads

    set_threads(threads)
    name, options = parsed(kind)
    before, started = peak_memory(), time.monotonic()
    folder = folder_of(kind, work)
    folder.mkdir(exist_ok=True)
    files = index_class(name).build(IndexSources(None, work / VECTORS, options), folder)  # type: ignore[arg-type]
    return (
        time.monotonic() - started,
        peak_memory() - before,
        sum((folder / file).stat().st_size for file in files),
    )


def search(kind: str, work: Path, threads: int) -> dict[str, Any]:
    """Some fields of Figures."""
    from retriever_server.indexes import Queries, Settings, open_index
    from retriever_server.models.encoder import set_threads

    set_threads(threads)
    name, options = parsed(kind)
    queries = np.load(work / QUERIES)
    before = resident_memory()
    index = open_index(name, folder_of(kind, work), Settings(options))
    rows = np.concatenate([index.search(Queries([], part), TOP_K)[1] for part in np.array_split(queries, 20)])
    resident = resident_memory() - before  # after all questions, so with what they touched of a mapped file
    np.save(folder_of(kind, work) / "rows.npy", rows)
    one, many = (
        len(queries) / seconds_for(lambda part: index.search(Queries([], part), TOP_K), queries, size)
        for size in (1, BATCH)
    )
    return {"rows": rows, "resident": resident, "single": one, "batched": many}


def seconds_for(ask: Callable[[np.ndarray], Any], queries: np.ndarray, size: int) -> float:
    """Seconds for all queries, `size` at a time."""
    started = time.monotonic()
    for start in range(0, len(queries), size):
        ask(queries[start : start + size])
    return time.monotonic() - started


def parsed(kind: str) -> tuple[str, Any]:
    """The name of the kind and its options, of "name:key=value,..."."""
    from retriever_server.indexes.options import options_of, parse_options

    name, _, words = kind.partition(":")
    return name, options_of(name).model_validate(parse_options(name, words.split(",") if words else []))


def folder_of(kind: str, work: Path) -> Path:
    """Where the kind's index is built."""
    return work / kind.replace(":", "_").replace(",", "_")


def exact_rows(work: Path) -> np.ndarray:
    """What flat finds, which is to be measured first."""
    found: np.ndarray = np.load(work / "flat" / "rows.npy")
    return found


def recall(found: np.ndarray, truth: np.ndarray, top_k: int) -> float:
    """Share of the true first top_k that are among the found first top_k."""
    pairs = zip(found[:, :top_k], truth[:, :top_k], strict=True)
    return float(np.mean([np.isin(true, rows).mean() for rows, true in pairs]))


def line(kind: str, figures: Figures, truth: np.ndarray, rows: int) -> str:
    """The kind's row of the table."""
    recalls = " | ".join(f"{recall(figures.rows, truth, k):.3f}" for k in (5, 10))
    sizes = f"{figures.disk / rows:,.0f} | {figures.resident / GB:.2f} GB"
    built = f"{figures.build_s:,.0f} s, {figures.build_memory / GB:.1f} GB"
    return f"| {kind} | {recalls} | {sizes} | {built} | {figures.single:,.0f} | {figures.batched:,.0f} |"


def wiki_line(kind: str, figures: Figures, rows: int) -> str:
    """The kind for Wikipedia: sizes as it reckons them itself, speeds of those that scan by their numbers."""
    from retriever_server.indexes import index_class

    name, options = parsed(kind)
    needs = index_class(name).needs(WIKI_ROWS, WIKI_DIMENSION, options)
    vectors = 4 * WIKI_ROWS * WIKI_DIMENSION if name == "flat" else 0
    sizes = f"{(needs.disk + vectors) / GB:.0f} GB | {needs.memory / GB:.0f} GB"
    slower = WIKI_ROWS * WIKI_DIMENSION / (rows * 384)
    if name not in EXHAUSTIVE:
        return f"| {kind} | {sizes} | not extrapolated | not extrapolated |"
    return f"| {kind} | {sizes} | {figures.single / slower:.2g} | {figures.batched / slower:.2g} |"


def resident_memory() -> int:
    """Bytes of this process in main memory, mapped files included."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def peak_memory() -> int:
    """Most bytes that this process had in main memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
