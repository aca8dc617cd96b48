"""The asynchronous client against real HTTP servers on loopback: wire formats, retries, de-duplication, dead
servers.
"""

import asyncio
import threading
import time
from contextlib import contextmanager

import pytest
from flask import Flask, jsonify, request
from werkzeug.serving import make_server

from research.retriever_client import RetrieverClient, RetrieverConfig
from research.search_loop import SearchError
from research.training.preflight import free_port


@contextmanager
def serving(app, port=0):
    server = make_server("127.0.0.1", port, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def retriever(faults=(), calls=None, delay=0.0):
    """A server of both wire formats that first answers with the given status codes."""
    app, left, calls = Flask("retriever"), list(faults), calls if calls is not None else []

    def document(query, rank):
        contents = {"contents": f"{query}\npassage {rank}"}
        return {"id": rank} | (contents if request.get_json().get("return_contents", True) else {})

    @app.before_request
    def record():
        calls.append(request.get_json())
        delay() if callable(delay) else time.sleep(delay)
        return ("no", left.pop(0)) if left else None

    @app.post("/search")
    def search():
        body = request.get_json()
        documents = [document(body["query"], rank) for rank in range(body["top_n"])]
        return jsonify([documents, [1.0 / (rank + 1) for rank in range(len(documents))]])

    @app.post("/retrieve")
    def retrieve():
        body = request.get_json()
        return jsonify(
            {"result": [[{"document": document(q, 0), "score": 0.5}] * body["topk"] for q in body["queries"]]}
        )

    return app


def ask(url, *queries, **options):
    async def run():
        client = RetrieverClient(RetrieverConfig(url=url, top_k=2, **{"deadline": 5.0, **options}))
        try:
            return await asyncio.gather(*(client(query) for query in queries), return_exceptions=True)
        finally:
            await client.close()

    return asyncio.run(run())


@pytest.mark.parametrize("wire", ["research", "search_r1"])
def test_wire_formats(wire):
    with serving(retriever()) as url:
        (passages,) = ask(url, "who?", wire=wire)
    assert [p.contents for p in passages][0] == "who?\npassage 0" and len(passages) == 2
    assert passages[0].id == "0" and passages[0].score is not None


@pytest.mark.parametrize("wire", ["research", "search_r1"])
def test_ids_alone(wire):
    with serving(retriever()) as url:
        (passages,) = ask(url, "who?", wire=wire, contents=False)
    assert [(p.id, p.contents) for p in passages][0] == ("0", "") and len(passages) == 2


def test_server_errors_are_retried():
    calls = []
    with serving(retriever([500, 503, 429], calls)) as url:
        (passages,) = ask(url, "q")
    assert len(calls) == 4 and len(passages) == 2


def test_a_refused_request_is_not_retried():
    calls = []
    with serving(retriever([400] * 9, calls)) as url:
        (error,) = ask(url, "q")
    assert isinstance(error, SearchError) and "400" in str(error) and len(calls) == 1


def test_equal_queries_in_flight_share_a_request():
    calls = []
    with serving(retriever([], calls, delay=0.2)) as url:
        answers = ask(url, *["same"] * 20, "other")
    assert len(calls) == 2 and all(answer == answers[0] for answer in answers[:20])


def test_a_slow_server_times_out():
    calls, answer = [], threading.Event()
    with serving(retriever([], calls, delay=lambda: answer.wait(120))) as url:
        (error,) = ask(url, "q", timeout=0.1, deadline=0.5)
        answer.set()
    assert isinstance(error, SearchError) and calls


def test_waiting_for_a_free_connection_is_no_time_out():
    calls = []
    with serving(retriever([], calls, delay=0.25)) as url:
        answers = ask(url, *"abcdefghijkl", connections=1, timeout=2.0, deadline=2.4)
    assert [answer[0].contents[0] for answer in answers] == list("abcdefghijkl")
    assert len(calls) == 12


def test_an_answer_of_another_kind_names_the_wire_format():
    app = Flask("other")
    app.post("/search")(lambda: jsonify({"unexpected": 1}))
    with serving(app) as url:
        (error,) = ask(url, "q")
    assert isinstance(error, SearchError) and "research" in str(error)


def test_a_server_that_comes_back_is_found_again():
    """Killed and started again within the deadline: the search succeeds, late."""
    answers = []
    with free_port("127.0.0.1") as port:
        url = f"http://127.0.0.1:{port}"
        thread = threading.Thread(target=lambda: answers.extend(ask(url, "q", deadline=120.0)))
        thread.start()
        time.sleep(1.0)  # to be refused a few times
        with serving(retriever(), port):
            thread.join(timeout=120)
    assert len(answers[0]) == 2


def test_no_server_is_an_error_within_the_deadline():
    started = time.monotonic()
    (error,) = ask("http://127.0.0.1:9", "q", deadline=1.0)
    assert isinstance(error, SearchError) and "attempts" in str(error) and time.monotonic() - started < 30


@pytest.mark.parametrize("bad", [{"url": "localhost:8000"}, {"url": "http://x", "wire": "other"}])
def test_bad_configuration_is_refused(bad):
    with pytest.raises(ValueError, match="retriever"):
        RetrieverConfig(**bad)


@pytest.mark.parametrize("wire", ["research", "search_r1"])
def test_each_request_is_kept_by_query_count_and_excluded_ids(wire):
    calls = []

    async def ask_four_times(url):
        client = RetrieverClient(RetrieverConfig(url=url, wire=wire, top_k=2))
        wanted = [(2, frozenset()), (3, frozenset()), (2, frozenset({"8", "9"})), (2, frozenset({"9", "8"}))]
        found = [await client("who?", *request) for request in wanted]
        await client.close()
        return found

    with serving(retriever(calls=calls)) as url:
        found = asyncio.run(ask_four_times(url))
    assert [len(passages) for passages in found] == [2, 3, 2, 2] and len(calls) == 3
    assert [call.get("exclude_ids") for call in calls[:2]] == [None, None]
    assert calls[2]["exclude_ids"] == (["8", "9"] if wire == "research" else [["8", "9"]])


def test_a_server_that_passes_over_excluded_ids_is_found_out():
    async def ask_without(url):
        client = RetrieverClient(RetrieverConfig(url=url))
        try:
            await client("who?", 2, frozenset({"1"}))
        finally:
            await client.close()

    with serving(retriever()) as url, pytest.raises(SearchError, match="exclude_ids"):
        asyncio.run(ask_without(url))
