"""Command line: `python -m retriever_server build|serve|bench --help`.

Commands import what they need inside: FAISS and Flask take a second, which --help does without.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from retriever_server.errors import RetrieverError
from retriever_server.indexes import KINDS, Device
from retriever_server.indexes.options import option_help

if TYPE_CHECKING:
    from retriever_server.serving.metrics import ServiceMetrics
    from retriever_server.serving.pipeline import ServingLimits
    from retriever_server.serving.service import Searcher

LARGE_BYTES = 2_000_000_000  # some ten seconds of SHA-256
KIND_HELP = f"Kind of index: {', '.join(KINDS)}."
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)
AT_LEAST_1 = click.IntRange(min=1)

threads_option = click.option("--threads", type=AT_LEAST_1, help="CPU threads.  [default: all cores]")
options_option = click.option(
    "--index-option",
    "index_options",
    multiple=True,
    metavar="KEY=VALUE",
    help="Option of the kind, see below.",
)
backend_option = click.option(
    "--encoder-backend",
    "backend",
    type=click.Choice(["auto", "torch", "openvino"]),
    default="auto",
    help="What computes the encoder; auto: OpenVINO on a CPU, else torch. Their vectors are the same.",
)
device_option = click.option("--device", help="cpu, cuda, cuda:1, ...  [default: an accelerator if any]")


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Show the user's mistakes, and the system's errors, as one line and exit with status 1."""
    try:
        yield
    except (RetrieverError, OSError) as error:
        raise click.ClickException(" ".join(str(error).split())) from error


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True}
)
def main() -> None:
    """Passage retrieval as a service: build an index over a corpus once, then serve it over HTTP.

    \b
    Example, from a corpus to an answer:
      python -m retriever_server build corpus.jsonl indexes/wiki
      python -m retriever_server serve indexes/wiki --port 8000
      curl -s localhost:8000/search -d '{"query": "Who wrote Faust?", "top_n": 3}'
    """
    # Threads that spin while they wait for each other are far slower when training uses the cores too.
    # OpenMP reads this when torch is loaded, which the commands do later.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@main.command("build", epilog=option_help())
@click.argument("corpus", type=FILE)
@click.argument("index_dir", type=FOLDER)
@click.option("--encoder", default="minilm", help="Hub name or folder of a model, or minilm.")
@click.option("--index", "kind", default="flat", metavar="KIND", help=KIND_HELP)
@click.option("--query-prompt", help="Text before each query.  [default: the model's own]")
@click.option("--passage-prompt", help="Text before each passage.  [default: the model's own]")
@click.option("--faiss-index", type=FILE, help="Adopt this index: check it against CORPUS, then link to it.")
@click.option("--vectors", type=FILE, help="Build from the vectors in this flat index; nothing is encoded.")
@click.option("--batch-size", type=AT_LEAST_1, default=64, help="Passages per model pass.")
@click.option("--force", is_flag=True, help="Replace the index that INDEX_DIR already holds.")
@options_option
@backend_option
@device_option
@threads_option
def build_command(corpus: Path, index_dir: Path, **options: Any) -> None:
    """Encode CORPUS into the new directory INDEX_DIR.

    CORPUS is JSON Lines, plain, .gz or .tar.gz, one {"id": ..., "contents": "title\\ntext"} per row, or one
    {"_id": ..., "title": ..., "text": ...} as in BEIR. INDEX_DIR appears only when it is complete; an
    interrupted build resumes when the command is given again. Building the same index again does nothing.

    \b
    Examples:
      python -m retriever_server build corpus.jsonl indexes/wiki
      python -m retriever_server build corpus.jsonl.gz indexes/e5 --encoder intfloat/e5-base-v2 --device cuda
      python -m retriever_server build wiki-18.jsonl indexes/wiki18 \\
          --encoder intfloat/e5-base-v2 --faiss-index e5_Flat.index
      python -m retriever_server build wiki-18.jsonl indexes/wiki18_hnsw --index hnsw --index-option M=48 \\
          --encoder intfloat/e5-base-v2 --vectors e5_Flat.index
    """
    from retriever_server.building.build import BuildOptions, create_index

    # Exit by unwinding, so that what is encoded is on disk.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with one_line_errors():
        manifest, built = create_index(BuildOptions(corpus=corpus, target=index_dir, **options))
    state = "built" if built else "already built, nothing to do"
    made_with = f"{manifest.kind}, {manifest.encoder}" if manifest.encoder else manifest.kind
    summary = f"{manifest.count:,} passages, {made_with}, corpus {manifest.corpus.sha256[:12]}"
    click.echo(f"{index_dir}: {state} ({summary})")


RAY_OPTIONS = ("ray_address", "shards", "replicas", "shard_cpus", "shard_timeout")
"""Fields of ClusterOptions, whose defaults apply where an option is not given."""


@main.command(epilog=option_help())
@click.argument("index_dir", type=FOLDER)
@click.option("--host", default="127.0.0.1", help="0.0.0.0 admits other machines.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, help="0: a free one.")
@click.option("--http-threads", type=AT_LEAST_1, default=256, help="Requests at once.")
@click.option(
    "--max-queue",
    type=AT_LEAST_1,
    default=1024,
    help="Different queries in flight; a request that needs more gets 503 and the time to retry.",
)
@click.option(
    "--cache-size",
    type=click.IntRange(min=0),
    default=64,
    metavar="MIB",
    help="Memory for answers and vectors of earlier queries. 0: none are kept.",
)
@click.option(
    "--token",
    envvar="RETRIEVER_TOKEN",
    show_envvar=True,
    help='Requests must carry "Authorization: Bearer TOKEN", except GET / and /health. Other users of this '
    "machine can read a command line, but not the variable.",
)
@click.option(
    "--reload",
    is_flag=True,
    help="On SIGHUP, and with a token on POST /reload, switch to the index that is then in INDEX_DIR.",
)
@click.option("--encoder", help="Where the model is now, if it has moved since the build.")
@click.option(
    "--encoder-dtype",
    "dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    help="What the encoder computes in. The halves may be twice as fast; scores change in the fifth decimal.",
)
@click.option("--reranker", help="Hub name or folder of a cross-encoder that reorders what the index found.")
@click.option(
    "--rerank-depth",
    type=click.IntRange(1, 1000),
    default=50,
    help="Passages per query that the reranker reads, unless more are requested.",
)
@click.option("--skip-fingerprint", is_flag=True, help="Check sizes and sample rows, not the whole files.")
@click.option("--die-with-parent", is_flag=True, help="End when the starting process ends (Linux).")
@click.option(
    "--index-device",
    type=click.Choice(get_args(Device)),
    default="cpu",
    help="Where flat and flat_fp16 are searched; auto: on GPUs if they fit.",
)
@options_option
@backend_option
@device_option
@threads_option
@click.option("--ray", is_flag=True, help="Search the index in shards, actors of a Ray cluster.")
@click.option(
    "--ray-address",
    metavar="HOST:PORT",
    help="Head of the cluster, of which this machine is a node.  [default: start Ray here]",
)
@click.option("--shards", type=AT_LEAST_1, help="Slices of the index.  [default: 1]")
@click.option("--replicas", type=AT_LEAST_1, help="Actors that hold each slice.  [default: 1]")
@click.option("--shard-cpus", type=AT_LEAST_1, help="CPUs, and threads, per actor.  [default: 1]")
@click.option(
    "--shard-timeout",
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds without an answer from a shard after which a query gets 503.  [default: 10]",
)
def serve(index_dir: Path, die_with_parent: bool, **options: Any) -> None:
    """Serve the index in INDEX_DIR over HTTP until SIGTERM or ctrl-C.

    GET /health answers 503 while the index loads. POST /search, /batch_search and /retrieve search it. GET /
    is a page to search by hand, GET /metrics is for Prometheus. A line "ready: URL" appears on standard
    output once searches are answered. SIGTERM finishes what is in flight.

    With --ray, shards of an index of kind flat are searched on the nodes of a Ray cluster, which must all see
    INDEX_DIR at the same path. Answers are the same as without. Passages and encoder stay here.

    \b
    Examples:
      python -m retriever_server serve indexes/wiki
      python -m retriever_server serve indexes/wiki --port 0 --threads 2 --die-with-parent
      RETRIEVER_TOKEN=secret python -m retriever_server serve indexes/wiki --host 0.0.0.0 --reload
      python -m retriever_server serve indexes/wiki_hnsw --index-option efSearch=64
      python -m retriever_server serve indexes/wiki --index-device auto
      python -m retriever_server serve indexes/wiki --ray --ray-address 10.0.0.1:6379 --shards 4 --replicas 2
    """
    from retriever_server.http import server
    from retriever_server.serving.pipeline import ServingLimits
    from retriever_server.serving.served import Served

    limits = ServingLimits(cache_mib=options.pop("cache_size"), max_queue=options.pop("max_queue"))
    listen = {name: options.pop(name) for name in ("host", "port", "http_threads", "token", "reload")}
    with one_line_errors():
        if die_with_parent:
            server.end_with_parent()
        served = Served()
        cluster = _pop_cluster_options(options)
        load = partial(_load, index_dir, limits, served.metrics, cluster, **options)
        server.run_server(load, served, server.ListenOptions(**listen), at_end=_leave_ray)


def _pop_cluster_options(options: dict[str, Any]) -> dict[str, Any] | None:
    """Remove RAY_OPTIONS from the options; returns those given, or None without --ray."""
    given = {name: value for name in RAY_OPTIONS if (value := options.pop(name)) is not None}
    if not options.pop("ray"):
        if given:
            raise click.UsageError(f"--{next(iter(given)).replace('_', '-')} needs --ray")
        return None
    if options["index_device"] != "cpu":
        raise click.UsageError("--ray searches on CPUs: it cannot be combined with --index-device")
    return given


def _load(
    index_dir: Path,
    limits: "ServingLimits",
    metrics: "ServiceMetrics",
    cluster: dict[str, Any] | None,
    report: Callable[[str], None],
    *,
    reranker: str | None,
    rerank_depth: int,
    threads: int | None,
    skip_fingerprint: bool,
    **opening: Any,
) -> "Searcher":
    report("loading libraries")
    from retriever_server.building.store import open_store
    from retriever_server.models.encoder import set_threads
    from retriever_server.models.reranker import Reranker
    from retriever_server.serving.service import Searcher

    if threads:
        set_threads(threads)
    contents = not skip_fingerprint and not _too_large_to_check(index_dir)
    store = open_store(index_dir, check_contents=contents, report=report, **opening)
    ranker = None
    if reranker is not None:
        report("loading the reranker")
        ranker = Reranker(reranker, opening["device"])
    if cluster is not None:  # last: what fails before leaves no actors behind
        report("starting the shards")
        from retriever_server.serving.cluster import ClusterOptions, ShardedIndex

        index = ShardedIndex(index_dir, ClusterOptions(**cluster))
        store = replace(store, index=index, release=index.close)
    return Searcher(store, limits, metrics, ranker, rerank_depth)


def _leave_ray() -> None:
    """Stop a Ray that was started here; the kernel would end some of its processes only after a minute."""
    if ray := sys.modules.get("ray"):
        ray.shutdown()


def _too_large_to_check(index_dir: Path) -> bool:
    from retriever_server.building.store import Manifest

    manifest = Manifest.read(index_dir)
    large = manifest.corpus.bytes + sum(file.bytes for file in manifest.files.values()) > LARGE_BYTES
    if large:
        click.echo("large index: sizes and sample rows are checked, not the whole fingerprint", err=True)
    return large


@main.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(arguments: tuple[str, ...]) -> None:
    """Measure any server of these wire formats under load (benchmarks/load.py, in a checkout)."""
    try:
        load = import_module("benchmarks.load")
    except ModuleNotFoundError as error:
        if error.name not in ("benchmarks", "benchmarks.load"):
            raise
        raise click.ClickException("bench needs benchmarks/load.py: run it in a checkout") from error
    load.main(list(arguments), prog_name="python -m retriever_server bench", standalone_mode=False)


if __name__ == "__main__":
    main(prog_name="python -m retriever_server")
