"""Sharded index: slices of a flat index in Ray actors on the nodes of a cluster, searched as one.

An actor maps its slice of the index file, which every node sees at the same path, and searches it like
FlatIndex. The best of all slices' best are what one FlatIndex finds: the same rows, scores and order. (faiss'
own sharding stays within one process, and Ray Serve has no placement of replicas on different nodes.)

Several actors hold each slice, on different nodes if there are enough. A query that one of them loses, or
does not answer in time, goes to another; Ray restarts actors that died. The actors belong to this process:
Ray ends them when it ends, however that happens.

Imported only by `serve --ray`: importing Ray takes a second.
"""

import logging
import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import click
import faiss
import numpy as np
import psutil
import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from retriever_server.building.store import Manifest
from retriever_server.errors import RetrieverError
from retriever_server.indexes import Queries, ScoredRows
from retriever_server.indexes.flat import FlatIndex, FlatSlice
from retriever_server.serving.shard import Shard, ShardQuery

CONNECT_S = 5.0  # to connect to a cluster's address
REPORT_S = 10.0  # between two lines about actors that are not ready yet
OBJECT_STORE_BYTES = 256 * 1024 * 1024  # of a local Ray: queries and answers are small


@dataclass(frozen=True)
class ClusterOptions:
    """How to distribute an index.

    `ray_address` is HOST:PORT of a Ray cluster; None starts Ray on this machine. `shard_cpus` is the number
    of CPUs, and threads, of one actor. A query not answered by a shard in `shard_timeout` seconds fails.
    """

    ray_address: str | None = None
    shards: int = 1
    replicas: int = 1
    shard_cpus: int = 1
    shard_timeout: float = 10.0


class ShardActor:
    """One slice of an index's rows, in its own process on some node."""

    def __init__(self, directory: Path, manifest: Manifest, rows: range, threads: int) -> None:
        faiss.omp_set_num_threads(threads)
        self._directory, self._manifest, self._rows = directory, manifest, rows
        self._index: FlatIndex | None = None
        # An exception here would end this actor for good. The first query opens the file again, and reports
        # it.
        with suppress(RetrieverError):
            self.open()

    def search(self, vectors: np.ndarray, top_k: int) -> ScoredRows:
        """The slice's min(top_k, rows) best, as FlatIndex.search; raises what `open` does."""
        self.open()
        assert self._index is not None
        return self._index.search(Queries([], vectors), top_k)

    def open(self) -> None:
        """Load the slice; RetrieverError when this node does not have the files of `manifest`."""
        if self._index is not None:
            return
        try:
            manifest = Manifest.read(self._directory)
            if manifest != self._manifest:
                raise RetrieverError(f"{self._directory} holds another index there than on the serving node")
            manifest.check_files(self._directory, contents=False)
            index = FlatSlice(self._directory, self._rows)
        except (RetrieverError, OSError) as error:
            advice = "all nodes must see the same index at the same path"
            raise RetrieverError(f"node {ray.util.get_node_ip_address()}: {error} ({advice})") from error
        # One search reads the whole slice from the disk, which would take too long for the first query.
        index.search(Queries([], index.vectors(np.array([self._rows.start]))), 1)
        self._index = index


class ShardedIndex(FlatIndex):
    """A flat index searched by the shards of a Ray cluster. Thread-safe."""

    def __init__(self, directory: Path, options: ClusterOptions) -> None:
        """Start the actors and wait until all are ready, in the main thread: see `connect`.

        Raises RetrieverError for an index or a cluster that does not fit `options`, or a node that does not
        see the index.
        """
        manifest = Manifest.read(directory)
        check_shardable(manifest, options)
        super().__init__(directory)
        connect(options)
        self._timeout_s = options.shard_timeout
        # A group per shard: "SPREAD" puts its actors on different nodes if possible, the least busy ones.
        bundles = [{"CPU": options.shard_cpus}] * options.replicas
        self._groups = [placement_group(bundles, strategy="SPREAD") for _ in range(options.shards)]
        try:
            self._shards = _start_shards(self._groups, directory.resolve(), manifest, options)
        except BaseException:
            self.close()
            raise

    def search(self, queries: Queries, top_k: int) -> ScoredRows:
        """As FlatIndex.search, bit for bit; Unavailable when a shard does not answer in time."""
        assert queries.vectors is not None
        top_k = min(top_k, self.count)
        vectors = ray.put(np.ascontiguousarray(queries.vectors, dtype=np.float32))
        query = ShardQuery(vectors, top_k, deadline=monotonic() + self._timeout_s)
        begun = [(shard, shard.begin(query)) for shard in self._shards]  # all begin before one is awaited
        return merge([shard.answer(query, calls) for shard, calls in begun], top_k)

    def actors(self) -> list[ActorHandle]:
        """All actors, shard by shard."""
        return [actor for shard in self._shards for actor in shard.actors]

    def close(self) -> None:
        """End the actors. Ray stays: another index may replace this one."""
        for group in self._groups:
            remove_placement_group(group)


def merge(results: list[ScoredRows], top_k: int) -> ScoredRows:
    """The best `top_k` of several (scores [q, any], rows [q, any]), best first, equal scores in row order."""
    scores, rows = (np.concatenate(parts, axis=1) for parts in zip(*results, strict=True))
    order = np.lexsort((rows, -scores), axis=1)[:, :top_k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)


def slices(count: int, shards: int) -> list[range]:
    """The rows of each shard: consecutive, and equally many up to one."""
    ends = [count * shard // shards for shard in range(shards + 1)]
    return [range(start, end) for start, end in zip(ends, ends[1:], strict=False)]


def check_shardable(manifest: Manifest, options: ClusterOptions) -> None:
    """Raise RetrieverError for a kind other than flat, or more shards than passages."""
    if manifest.kind != "flat":
        raise RetrieverError(f"--ray serves indexes of kind flat; this one is of kind {manifest.kind}")
    if options.shards > manifest.count:
        raise RetrieverError(f"{options.shards} shards are more than the index has passages")


def connect(options: ClusterOptions) -> None:
    """Join the Ray cluster at the address of `options`, or start a Ray here that ends with this process.

    Does nothing the second time. The first call must be in the main thread: the kernel ends a local Ray with
    the thread that started it. Raises RetrieverError when the cluster cannot be joined or is too small for
    the actors.
    """
    actors, cpus = options.shards * options.replicas, options.shard_cpus
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a service does not report to others
        # The future default; avoids a warning.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        with _sigterm_kept():
            _join(options.ray_address) if options.ray_address else _start_local(2 * actors * cpus)
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    room = sum(of_node // cpus for of_node in nodes)
    if room < actors:
        raise RetrieverError(
            f"{options.shards} shards x {options.replicas} replicas of {cpus} CPUs do not fit into "
            f"the cluster: its {len(nodes)} nodes have room for {room} of {actors}"
        )


def _start_local(cpus: int) -> None:
    others = psutil.Process().children(recursive=True)
    try:
        # Ray only counts CPUs. They are twice those needed, so that another index can replace this one.
        ray.init(
            "local",
            num_cpus=cpus,
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    except BaseException:
        # Ray does not know yet what it has started, and some of that would wait a minute for the rest.
        started = [child for child in psutil.Process().children(recursive=True) if child not in others]
        ray.shutdown()
        for process in started:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        raise


def _join(address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        # Ray itself tries for a minute, without a better message.
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
        ray.init(address, logging_level=logging.ERROR, log_to_driver=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise RetrieverError(
            f"cannot join a Ray cluster at {address} (HOST:PORT of its head; this machine must be one of its "
            f"nodes): {error}"
        ) from error


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Restore the SIGTERM handler that ray.init replaces, and deliver a SIGTERM that arrived meanwhile."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit:
        signal.signal(signal.SIGTERM, handler)
        signal.raise_signal(signal.SIGTERM)
        raise
    finally:
        signal.signal(signal.SIGTERM, handler)


def _start_shards(
    groups: list[PlacementGroup], directory: Path, manifest: Manifest, options: ClusterOptions
) -> list[Shard]:
    actor_class: Any = ray.remote(ShardActor)
    actors: list[list[ActorHandle]] = [
        [
            actor_class.options(
                num_cpus=options.shard_cpus,
                max_restarts=-1,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, replica),
            ).remote(directory, manifest, rows, options.shard_cpus)
            for replica in range(options.replicas)
        ]
        for group, rows in zip(groups, slices(manifest.count, options.shards), strict=True)
    ]
    _wait_until_open([actor for replicas in actors for actor in replicas])
    return [Shard(number, replicas, options.shard_timeout) for number, replicas in enumerate(actors)]


def _wait_until_open(actors: list[ActorHandle]) -> None:
    waiting: set[Future[None]] = set()
    for actor in actors:
        call: ray.ObjectRef = actor.open.options(max_task_retries=-1).remote()  # a node may be lost meanwhile
        waiting.add(call.future())
    while waiting:
        done, waiting = wait(waiting, timeout=REPORT_S, return_when=FIRST_EXCEPTION)
        for opened in done:
            try:
                opened.result()
            except RayTaskError as error:
                raise error.cause from None
            except RayError as error:
                raise RetrieverError(f"a shard actor does not start: {error}") from error
        if waiting:
            free = int(ray.available_resources().get("CPU", 0))
            click.echo(
                f"{len(waiting)} of {len(actors)} shard actors are not ready; {free} CPUs free", err=True
            )
