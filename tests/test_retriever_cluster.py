"""Sharded index: what one flat index answers, bit for bit, also while actors and nodes of the cluster die."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
import requests
from flask.testing import FlaskClient
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.actor import ActorHandle
from ray.cluster_utils import Cluster
from stack import command_of

from benchmarks.cluster import write_index
from retriever_server.building.build import BuildOptions, create_index
from retriever_server.building.store import MANIFEST_FILE, Manifest, open_store
from retriever_server.errors import RetrieverError, Unavailable
from retriever_server.http.app import create_retriever_app
from retriever_server.indexes import Queries
from retriever_server.indexes.flat import FlatIndex, FlatSlice
from retriever_server.models.encoder import set_threads
from retriever_server.serving.cluster import ClusterOptions, ShardActor, ShardedIndex, merge, slices
from retriever_server.serving.served import Served
from retriever_server.serving.service import Searcher

ROOT = Path(__file__).parents[1]
DEADLINE_S = 120
NODE = {
    "num_cpus": 16,  # one alone has room for all that the tests start
    "object_store_memory": 100 * 2**20,
}
DIMENSION = 8


def random_vectors(random: np.random.Generator, count: int, values: int) -> np.ndarray:
    """With few `values` most inner products are equal, with many hardly any."""
    return (random.integers(-values, values + 1, (count, DIMENSION)) / values).astype("f4")


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 120), st.integers(1, 150), st.integers(1, 9), st.booleans())
def test_slices_together_give_what_the_whole_gives(
    seed: int, count: int, top_k: int, shards: int, ties: bool
) -> None:
    random, values = np.random.default_rng(seed), 1 if ties else 1000
    asked = Queries([], random_vectors(random, 5, values))
    with tempfile.TemporaryDirectory() as folder:
        write_index(Path(folder), random_vectors(random, count, values))
        whole = FlatIndex(Path(folder))
        parts = [FlatSlice(Path(folder), rows) for rows in slices(count, min(shards, count))]
        assert sum(part.count for part in parts) == count
        assert same(merge([part.search(asked, top_k) for part in parts], top_k), whole.search(asked, top_k))


def same(found: tuple[np.ndarray, np.ndarray], expected: tuple[np.ndarray, np.ndarray]) -> bool:
    return all(
        a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        for a, b in zip(found, expected, strict=True)
    )


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 rows: first such as have many ties, then such as have few."""
    folder, random = tmp_path_factory.mktemp("cluster") / "index", np.random.default_rng(0)
    write_index(folder, np.concatenate([random_vectors(random, 150, 1), random_vectors(random, 150, 1000)]))
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head that takes no actors and two nodes, apart from any other Ray of this machine."""
    folder = tempfile.mkdtemp(prefix="ray")  # short: paths of sockets end at 107 characters
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        head = NODE | {"num_cpus": 0, "include_dashboard": False}
        nodes = Cluster(initialize_head=True, head_node_args=head)
        try:
            for _ in range(2):
                nodes.add_node(**NODE)
            yield nodes
        finally:
            ray.shutdown()
            nodes.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def sharded(cluster: Cluster, directory: Path) -> Iterator[ShardedIndex]:
    """Three shards, one actor each; time enough for a restart."""
    index = ShardedIndex(directory, ClusterOptions(cluster.address, shards=3, shard_timeout=DEADLINE_S))
    yield index
    index.close()


@pytest.fixture(scope="module")
def replicated(cluster: Cluster, directory: Path) -> Iterator[ShardedIndex]:
    """Two shards, two actors each."""
    options = ClusterOptions(cluster.address, shards=2, replicas=2, shard_timeout=DEADLINE_S)
    index = ShardedIndex(directory, options)
    yield index
    index.close()


def check_random_questions(index: ShardedIndex, whole: FlatIndex, seed: int, questions: int) -> None:
    random = np.random.default_rng(seed)
    for _ in range(questions):
        asked = random_vectors(random, int(random.integers(1, 40)), int(random.choice([1, 3, 1000])))
        top_k = int(random.integers(1, 400))
        assert same(index.search(Queries([], asked), top_k), whole.search(Queries([], asked), top_k))


@pytest.mark.launch
def test_answers_are_those_of_the_single_node_index(sharded: ShardedIndex, directory: Path) -> None:
    assert sharded.count == 300
    check_random_questions(sharded, FlatIndex(directory), seed=1, questions=60)


@contextmanager
def sixteen_askers(index: ShardedIndex, directory: Path) -> Iterator[None]:
    """16 threads ask all the time; in the end all their answers must have been right."""
    whole, stop = FlatIndex(directory), threading.Event()

    def asks(seed: int) -> int:
        rounds = 0
        while not stop.is_set():
            check_random_questions(index, whole, seed + 16 * rounds, questions=1)
            rounds += 1
        return rounds

    with ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(asks, seed) for seed in range(16)]
        try:
            yield
        finally:
            stop.set()
        assert all(rounds.result() > 0 for rounds in asked)


def pid(actor: ActorHandle) -> int:
    return int(ray.get(actor.__ray_call__.remote(lambda self: os.getpid()), timeout=DEADLINE_S))


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline, "it did not come to hold"
        time.sleep(0.1)


def answers(actor: ActorHandle) -> bool:
    try:
        ray.get(actor.open.remote(), timeout=DEADLINE_S)
    except ray.exceptions.RayActorError:
        return False
    return True


@pytest.mark.launch
def test_killed_actors_come_back_and_no_question_is_lost(sharded: ShardedIndex, directory: Path) -> None:
    before = [pid(actor) for actor in sharded.actors()]
    with sixteen_askers(sharded, directory):
        ray.kill(sharded.actors()[0], no_restart=False)
        os.kill(before[1], signal.SIGKILL)
        for actor in sharded.actors():
            wait_until(lambda actor=actor: answers(actor))
    after = [pid(actor) for actor in sharded.actors()]
    assert [old == new for old, new in zip(before, after, strict=True)] == [False, False, True]
    check_random_questions(sharded, FlatIndex(directory), seed=2, questions=10)


@pytest.mark.launch
def test_a_shard_that_cannot_answer_is_unavailable_until_it_can(
    sharded: ShardedIndex, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away, question = directory.with_name("away"), Queries([], np.ones((1, DIMENSION), dtype="f4"))

    def problem() -> str:
        with pytest.raises(Unavailable, match="shard 2 does not answer in time") as told:
            sharded.search(question, 3)
        assert told.value.retry_after_s > 0
        return str(told.value)

    to_kill = pid(sharded.actors()[2])
    directory.rename(away)
    os.kill(to_kill, signal.SIGKILL)
    monkeypatch.setattr(sharded, "_timeout_s", 1.0)
    wait_until(lambda: "all nodes must see the same index" in problem())  # not before it has started again
    monkeypatch.undo()
    away.rename(directory)
    assert same(sharded.search(question, 3), FlatIndex(directory).search(question, 3))


@pytest.mark.launch
def test_a_hung_actor_is_passed_over(
    replicated: ShardedIndex, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for shard in replicated._shards:
        monkeypatch.setattr(shard, "_late_s", 1.0)
    hung = pid(replicated.actors()[0])
    os.kill(hung, signal.SIGSTOP)
    try:
        check_random_questions(replicated, FlatIndex(directory), seed=3, questions=10)
    finally:
        os.kill(hung, signal.SIGCONT)


@pytest.mark.launch
def test_replicas_are_on_different_nodes_of_which_one_may_go(
    cluster: Cluster, replicated: ShardedIndex, directory: Path
) -> None:
    actors = replicated.actors()
    nodes = [
        ray.get(actor.__ray_call__.remote(lambda self: ray.get_runtime_context().get_node_id()))
        for actor in actors
    ]
    assert nodes[0] != nodes[1] and nodes[2] != nodes[3]
    with sixteen_askers(replicated, directory):
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        for actor in actors:
            wait_until(lambda actor=actor: answers(actor))  # the other node takes them
    check_random_questions(replicated, FlatIndex(directory), seed=4, questions=10)


def test_a_node_with_another_index_is_named(directory: Path) -> None:
    expected = Manifest.read(directory).model_copy(update={"count": 299})
    with pytest.raises(RetrieverError, match=r"node [\d.]+: .* holds another index"):
        ShardActor(directory, expected, range(10), threads=1).open()


@pytest.mark.launch
def test_what_does_not_fit_is_told_before_anything_starts(
    cluster: Cluster, directory: Path, tmp_path: Path
) -> None:
    with pytest.raises(RetrieverError, match="301 shards are more than the index has passages"):
        ShardedIndex(directory, ClusterOptions(cluster.address, shards=301))
    with pytest.raises(RetrieverError, match=r"40 shards x 1 replicas of 1 CPUs do not fit .* of 40"):
        ShardedIndex(directory, ClusterOptions(cluster.address, shards=40))
    bm25 = Manifest.read(directory).model_copy(update={"kind": "bm25"})
    (tmp_path / MANIFEST_FILE).write_text(bm25.model_dump_json())
    with pytest.raises(RetrieverError, match="--ray serves indexes of kind flat; this one is of kind bm25"):
        ShardedIndex(tmp_path, ClusterOptions(cluster.address))


SERVE = [sys.executable, "-m", "retriever_server", "serve", "--port", "0", "--die-with-parent"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shards", "2"], "--shards needs --ray"),
        (
            ["--ray", "--index-device", "auto"],
            "--ray searches on CPUs: it cannot be combined with --index-device",
        ),
        (["--ray", "--ray-address", "127.0.0.1:1"], "cannot join a Ray cluster at 127.0.0.1:1"),
    ],
)
def test_wrong_options_end_in_one_line(passages: Path, options: list[str], message: str) -> None:
    run = [*SERVE, str(passages), *options]
    ended = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S)
    assert ended.returncode != 0 and message in ended.stderr.splitlines()[-1] and ended.stdout == ""


@pytest.fixture(scope="module")
def passages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of passages of which several are the same."""
    folder = tmp_path_factory.mktemp("passages")
    rows = [{"id": row, "contents": f"City {row % 12}\nIt lies on river {row % 7}."} for row in range(60)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    set_threads(1)
    create_index(BuildOptions(corpus=folder / "corpus.jsonl", target=folder / "index", encoder="minilm"))
    return folder / "index"


@contextmanager
def serving(passages: Path, *options: str) -> Iterator[tuple[subprocess.Popen, list[psutil.Process]]]:
    """A server process; in the end it and all that it has started must be gone."""
    run = [*SERVE, str(passages), "--threads", "1", "--ray", *options]
    started: list[psutil.Process] = []
    with subprocess.Popen(run, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process, started
        finally:
            started += psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            process.kill()
    assert not psutil.wait_procs(started, timeout=DEADLINE_S)[1]


def url(process: subprocess.Popen) -> str:
    line = process.stdout.readline()
    assert line.startswith("ready: http://127.0.0.1:"), line
    return line.split()[1]


QUESTIONS = [
    ("/search", {"query": "city 3", "top_n": 60, "return_score": True}),
    ("/batch_search", {"query": ["a river", "city 11"], "top_n": 25, "return_score": True}),
    ("/retrieve", {"queries": ["river 5", "nothing", "city 1"], "topk": 40, "return_scores": True}),
]


def plain_server(passages: Path) -> FlaskClient:
    served = Served()
    served.swap(Searcher(open_store(passages)))
    return create_retriever_app(served).test_client()


@pytest.mark.launch
def test_server_on_ray_answers_as_the_plain_one_and_leaves_nothing(passages: Path) -> None:
    plain = plain_server(passages)
    with serving(passages, "--shards", "2") as (process, started):
        address = url(process)
        for route, body in QUESTIONS:
            reply = requests.post(f"{address}{route}", json=body, timeout=DEADLINE_S)
            assert (reply.status_code, reply.json()) == (200, plain.post(route, json=body).get_json())
        started += psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        assert process.wait(timeout=DEADLINE_S) == 0


@pytest.mark.launch
def test_signal_while_ray_starts_ends_all(passages: Path) -> None:
    with serving(passages) as (process, started):
        server = psutil.Process(process.pid)
        wait_until(lambda: any(command_of(child).endswith(" raylet") for child in server.children()))
        started += server.children(recursive=True)
        process.terminate()
        assert process.wait(timeout=DEADLINE_S) == 0


def shard_processes() -> list[psutil.Process]:
    """Those of the test cluster, whose nodes are this process's children."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "ShardActor" in command_of(child)]


@pytest.mark.launch
def test_actors_go_with_a_server_that_is_killed(cluster: Cluster, passages: Path) -> None:
    others = set(shard_processes())
    with serving(passages, "--ray-address", cluster.address, "--shards", "2") as (process, _):
        url(process)
        actors = set(shard_processes()) - others
        assert len(actors) == 2
        process.kill()
        process.wait(timeout=DEADLINE_S)
    assert not psutil.wait_procs(actors, timeout=DEADLINE_S)[1]
