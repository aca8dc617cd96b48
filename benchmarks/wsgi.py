"""WSGI servers under one small Flask application, each in one process: requests a second, and what a request
costs.

    pip install cheroot gevent granian gunicorn        # those to compare with; what is not there is left out
    python -m benchmarks.wsgi --concurrency 1,64,256

The application reads a JSON body and answers with 5 passages, after a wait in another thread as a search has
one: what is measured is HTTP, Flask, and the hand-over between threads. `waitress` is the server as the
retrieval service has it (retriever_server/http/httpd.py).
"""

import asyncio
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from importlib.util import find_spec
from queue import SimpleQueue
from typing import Any

import click
import psutil
from flask import Flask, Response, request

from benchmarks.load import LevelResult, LoadProfile, measure

THREADS = 256
BATCH_S = 0.002  # between two answers to all who wait
DOCUMENT = {"id": "1", "contents": "Title\n" + "word " * 100}
ANSWER = json.dumps([[DOCUMENT] * 5, [0.5] * 5]).encode()


def make_app() -> Flask:
    """POST /search; answers come from one other thread, all that wait at once."""
    app, asked = Flask("wsgi"), SimpleQueue[Future[bytes]]()

    def answer() -> None:
        while True:
            waiting = [asked.get()]
            time.sleep(BATCH_S)
            while not asked.empty():
                waiting.append(asked.get())
            for future in waiting:
                future.set_result(ANSWER)

    threading.Thread(target=answer, daemon=True).start()

    @app.post("/search")
    def search() -> Response:
        json.loads(request.get_data(cache=False))
        future: Future[bytes] = Future()
        asked.put(future)
        return Response(future.result(), mimetype="application/json")

    return app


def serve_waitress(app: Flask, listener: socket.socket) -> None:
    """As the retrieval service does."""
    from retriever_server.http.httpd import HttpServer

    HttpServer(app, listener, THREADS).start()
    threading.Event().wait()


def serve_cheroot(app: Flask, listener: socket.socket) -> None:
    """CherryPy's server."""
    from cheroot import wsgi

    class Server(wsgi.Server):  # type: ignore[misc]
        def bind(self, *arguments: Any) -> socket.socket:
            self.socket = listener
            return listener

    server = Server(("127.0.0.1", 0), app, numthreads=THREADS, max=THREADS, request_queue_size=4096)
    server.nodelay = True
    server.start()


def serve_gevent(app: Flask, listener: socket.socket) -> None:
    """gevent's, with the application in real threads: the work behind it is not gevent's."""
    from gevent.pywsgi import WSGIServer
    from gevent.threadpool import ThreadPool

    pool = ThreadPool(THREADS)

    def in_thread(environ: dict[str, Any], start: Callable[..., Any]) -> list[bytes]:
        environ["wsgi.input"] = __import__("io").BytesIO(environ["wsgi.input"].read())
        started: list[Any] = []
        parts = pool.apply(lambda: list(app(environ, lambda *words: started.append(words))))
        start(*started[0])
        return parts  # type: ignore[no-any-return]

    listener.setblocking(False)
    WSGIServer(listener, in_thread, log=None).serve_forever()


def serve_gunicorn(app: Flask, listener: socket.socket) -> None:
    """gthread; its one worker is forked, which a process that holds a model could not be."""
    from gunicorn.app.base import BaseApplication

    class Application(BaseApplication):  # type: ignore[misc]
        def load_config(self) -> None:
            words = {"bind": f"fd://{listener.fileno()}", "workers": 1, "worker_class": "gthread"}
            for name, value in {
                **words,
                "threads": THREADS,
                "worker_connections": 4096,
                "keepalive": 60,
            }.items():
                self.cfg.set(name, value)

        def load(self) -> Flask:
            return make_app()  # in the worker: threads do not live through a fork

    Application().run()


SERVERS = {
    "waitress": serve_waitress,
    "cheroot": serve_cheroot,
    "gevent": serve_gevent,
    "gunicorn": serve_gunicorn,
}


@click.command()
@click.option("--concurrency", default="1,64,256", show_default=True)
@click.option("--seconds", default=5.0, show_default=True)
@click.option("--serve", type=click.Choice([*SERVERS, "granian"]), hidden=True)
@click.option("--descriptor", type=int, hidden=True)
def main(concurrency: str, seconds: float, serve: str | None, descriptor: int | None) -> None:
    """See the top of this file."""
    if serve is not None:
        SERVERS[serve](make_app(), socket.socket(fileno=descriptor))
        return
    print("| server | clients | requests/s | p50 ms | p99 ms | ms of a core a request | errors |")
    print("|---|---|---|---|---|---|---|")
    for name in [*SERVERS, "granian"]:
        if find_spec(name):
            for level in map(int, concurrency.split(",")):
                print(line(name, level, seconds), flush=True)


def line(name: str, clients: int, seconds: float) -> str:
    """Start the server, ask, stop it: one line of the table."""
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listener:
        port = listener.getsockname()[1]
        command = [
            sys.executable,
            "-m",
            "benchmarks.wsgi",
            "--serve",
            name,
            "--descriptor",
            str(listener.fileno()),
        ]
        if name == "granian":
            listener.close()
            command = granian_command(port)
        process = subprocess.Popen(command, pass_fds=() if name == "granian" else [listener.fileno()])
    try:
        figures, busy = asyncio.run(ask(port, process.pid, clients, seconds))
    finally:
        process.terminate()
        process.wait()
    cost = 1000 * busy / (figures.requests_per_s * figures.seconds)
    cells = [name, clients, f"{figures.requests_per_s:.0f}", f"{figures.p50_ms:.1f}", f"{figures.p99_ms:.1f}"]
    return f"| {' | '.join(map(str, [*cells, f'{cost:.2f}', sum(figures.errors.values())]))} |"


def granian_command(port: int) -> list[str]:
    """granian starts its worker itself: through its own command."""
    words = ["--interface", "wsgi", "--workers", "1", "--blocking-threads", str(THREADS), "--backlog", "4096"]
    return [
        sys.executable,
        "-m",
        "granian",
        *words,
        "--port",
        str(port),
        "--factory",
        "benchmarks.wsgi:make_app",
    ]


async def ask(port: int, pid: int, clients: int, seconds: float) -> tuple[LevelResult, float]:
    """The figures, and the seconds of processor time that the server's processes took meanwhile."""
    await asyncio.to_thread(wait_until_it_listens, port)
    load = LoadProfile(f"http://127.0.0.1:{port}", seconds=seconds, warm_up_s=1.0)
    found: list[LevelResult] = []
    queries = [f"query {number}" for number in range(1000)]
    await measure(LoadProfile(load.url, seconds=1.0), [clients], queries, lambda figures: None)
    before = processor_seconds(pid)
    await measure(
        LoadProfile(load.url, seconds=seconds, warm_up_s=0.0), [clients], queries * 100, found.append
    )
    return found[0], processor_seconds(pid) - before


def wait_until_it_listens(port: int) -> None:
    """Polls: some servers say nothing."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("a server did not start")


def processor_seconds(pid: int) -> float:
    """Of a process and its children."""
    process = psutil.Process(pid)
    times = [each.cpu_times() for each in [process, *process.children(recursive=True)]]
    return sum(each.user + each.system for each in times)


if __name__ == "__main__":
    main()
