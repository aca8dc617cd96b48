"""The asynchronous client against real HTTP servers on loopback: wire formats, retries, de-duplication, dead
servers.
"""

import asyncio
import threading
import time

import pytest
from flask import Flask, jsonify, request
from loopback import ask, retriever, serving

from research.episode.tools import SearchError
from research.tools.search import RetrieverClient, RetrieverConfig
from research.training.run.preflight import free_port


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


def test_the_token_of_the_environment_is_sent(monkeypatch):
    app = retriever()

    @app.before_request
    def wants_a_token():
        return None if request.headers.get("Authorization") == "Bearer secret" else ("no token", 401)

    with serving(app) as url:
        (refused,) = ask(url, "q")
        monkeypatch.setenv("RETRIEVER_TOKEN", "secret")
        (passages,) = ask(url, "q")
    assert "HTTP 401 (the key is taken from RETRIEVER_TOKEN: it is not set): no token" in str(refused)
    assert len(passages) == 2 and refused.lasting


def test_a_pause_holds_no_connection():
    """The query that the server refuses for now waits; the others pass it on the only connection."""
    app, calls = retriever(), []

    @app.before_request
    def busy():
        query = request.get_json()["query"]
        calls.append(query)
        return ("busy", 503, {"Retry-After": "1"}) if query == "a" and calls.count("a") == 1 else None

    with serving(app) as url:
        answers = ask(url, *"abcd", connections=1)
    assert calls == ["a", "b", "c", "d", "a"] and all(len(answer) == 2 for answer in answers)


def test_a_server_that_is_not_there_is_reported_once(capsys):
    ask("http://127.0.0.1:9", "q", "r", deadline=1.0)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("WARNING: http://127.0.0.1:9/search: Cannot connect")
    assert line.endswith("trying again for up to 1 s")
