"""The server as its clients meet it: a process of its own on a free port, asked over HTTP."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from retriever_process import CONTENTS, DEADLINE_S, ROOT, ROWS, ask, document, start, wait_until_ready

from retriever_server.building.store import open_store
from retriever_server.http.app import create_retriever_app
from retriever_server.http.server import GRACE_S
from retriever_server.http.wire import well_formed_json
from retriever_server.indexes import Queries
from retriever_server.serving.pipeline import ServingLimits
from retriever_server.serving.served import Served
from retriever_server.serving.service import Searcher


def test_health_tells_the_figures(server: str) -> None:
    answer = requests.get(f"{server}/health", timeout=DEADLINE_S).json()
    assert answer["status"] == "healthy" and answer["retrievers"] == {"total": 1, "available": 1}
    assert (answer["count"], answer["encoder"], answer["dimension"]) == (len(ROWS), "minilm", 384)
    assert len(answer["fingerprint"]) == 64


def test_research_search(server: str) -> None:
    found = ask(server, "/search", {"query": CONTENTS["20"]})
    assert len(found) == 10 and found[0] == document(20)
    assert ask(server, "/search", {"query": CONTENTS["20"], "top_n": 3}) == found[:3]
    documents, scores = ask(server, "/search", {"query": CONTENTS["20"], "top_n": 3, "return_score": True})
    assert documents == found[:3] and scores[0] == pytest.approx(1, abs=1e-5)
    assert scores == sorted(scores, reverse=True)


def test_research_batch_search(server: str) -> None:
    queries = [CONTENTS["3"], CONTENTS["19"]]
    first, second = ask(server, "/batch_search", {"query": queries, "top_n": 2})
    assert (first[0], second[0]) == (document(3), document(19)) and len(first) == len(second) == 2
    documents, scores = ask(server, "/batch_search", {"query": queries, "top_n": 2, "return_score": True})
    assert documents == [first, second]
    assert [len(of_query) for of_query in scores] == [2, 2] and scores[0][0] == pytest.approx(1, abs=1e-5)
    assert ask(server, "/batch_search", {"query": []}) == []


def test_search_r1_retrieve(server: str) -> None:
    body = {"queries": [CONTENTS["3"], CONTENTS["19"]], "topk": 2, "return_scores": True}
    first, second = ask(server, "/retrieve", body)["result"]
    assert [list(entry) for entry in first + second] == [["document", "score"]] * 4
    assert (first[0]["document"], second[0]["document"]) == (document(3), document(19))
    assert first[0]["score"] == pytest.approx(1, abs=1e-5) and first[0]["score"] > first[1]["score"]
    plain = ask(server, "/retrieve", body | {"return_scores": False})["result"]
    assert plain == [[entry["document"] for entry in found] for found in (first, second)]
    assert [
        len(found) for found in ask(server, "/retrieve", {"queries": ["Rome"], "topk": None})["result"]
    ] == [3]


def test_skyrl_retrieve_with_one_query(server: str) -> None:
    body = {"topk": 3, "return_scores": True}
    one = ask(server, "/retrieve", body | {"query": "a spy in Oslo"})
    assert len(one["result"]) == 1 and len(one["result"][0]) == 3
    assert one == ask(server, "/retrieve", body | {"queries": ["a spy in Oslo"]})


def test_more_than_there_is_gives_all_rows_once(server: str) -> None:
    found = ask(server, "/search", {"query": "Rome", "top_n": 1000})
    assert sorted(entry["id"] for entry in found) == sorted(CONTENTS)


def test_unicode_and_the_longest_query_pass(server: str) -> None:
    assert ask(server, "/search", {"query": "東京", "top_n": 1})[0]["contents"].startswith("東京\n")
    assert len(ask(server, "/search", {"query": "x\u2028🗼 " * 2048, "top_n": 1})) == 1


ODD = ["\ud83d", "spy \udfff\ud83d", "\x00\x1b[0m\x7f", "?!...", "\u200b", "1984", "-" * 131_072]


@pytest.mark.parametrize("query", ODD)
def test_any_text_is_a_query(server: str, query: str) -> None:
    found = ask(server, "/search", {"query": query, "top_n": 64, "exclude_ids": ["\ud800", query[:1024]]})
    assert sorted(entry["id"] for entry in found) == sorted(CONTENTS)
    alone, other = ask(server, "/retrieve", {"queries": [query, CONTENTS["3"]], "topk": 1})["result"]
    assert alone == found[:1] and other == [document(3)]


def test_a_blank_query_in_a_list_finds_nothing_and_costs_the_others_nothing(server: str) -> None:
    queries = ["", CONTENTS["3"], " \n\t\u2003", CONTENTS["3"]]
    excluded: dict[str, object] = {"exclude_ids": [["3"], ["4"], [], ["3"]]}
    body = {"queries": queries, "topk": 1, "return_scores": True} | excluded
    first, second, third, fourth = ask(server, "/retrieve", body)["result"]
    assert first == third == [] and second[0]["document"] == document(3) != fourth[0]["document"]
    batch = {"query": queries, "top_n": 1, "return_score": True} | excluded
    documents, scores = ask(server, "/batch_search", batch)
    assert documents == [[entry["document"] for entry in found] for found in (first, second, third, fourth)]
    assert [len(of_query) for of_query in scores] == [0, 1, 0, 1]
    assert ask(server, "/retrieve", {"queries": ["", " "]})["result"] == [[], []]


PIECES = ["\ud83d", "\ude00", "\\", "u", '"', "d800", "\n", "é", "\ud7ff"]


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_halves_of_surrogate_pairs_are_replaced_and_nothing_else(text: str) -> None:
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert json.loads(well_formed_json(json.dumps([text]).encode())) == [whole]


LIMITS = {"query": "x" * 131_073, "queries": ["x"] * 1025}
MALFORMED = [
    ("/search", {}, "query"),
    ("/search", {"query": None}, "query"),
    ("/search", {"query": " \n"}, "query"),
    ("/search", {"query": 5}, "query"),
    ("/search", {"query": ["x"]}, "query"),
    ("/search", {"query": LIMITS["query"]}, "query"),
    ("/search", {"queries": ["x"]}, "query"),
    ("/search", {"query": "x", "top_n": 0}, "top_n"),
    ("/search", {"query": "x", "top_n": 1001}, "top_n"),
    ("/search", {"query": "x", "top_n": "5"}, "top_n"),
    ("/search", {"query": "x", "top_n": 2.5}, "top_n"),
    ("/search", {"query": "x", "top_n": True}, "top_n"),
    ("/search", {"query": "x", "return_score": "yes"}, "return_score"),
    ("/search", [], "body"),
    ("/search", "x", "body"),
    ("/batch_search", {"query": "x"}, "query"),
    ("/batch_search", {"query": ["x", LIMITS["query"]]}, "query.1"),
    ("/batch_search", {"query": LIMITS["queries"]}, "query"),
    ("/batch_search", {"query": ["x"], "top_n": -1}, "top_n"),
    ("/retrieve", {}, "query"),
    ("/retrieve", {"queries": ["x"], "query": "x"}, "query"),
    ("/retrieve", {"queries": "x"}, "queries"),
    ("/retrieve", {"queries": ["x", 7]}, "queries.1"),
    ("/retrieve", {"queries": ["x", None]}, "queries.1"),
    ("/retrieve", {"query": ""}, "query"),
    ("/retrieve", {"queries": ["x"], "topk": 0}, "topk"),
    ("/retrieve", {"queries": ["x"], "return_scores": 1}, "return_scores"),
]


@pytest.mark.parametrize(("route", "body", "field"), MALFORMED)
def test_malformed_body_is_refused_by_field(server: str, route: str, body: object, field: str) -> None:
    reply = requests.post(f"{server}{route}", json=body, timeout=DEADLINE_S)
    assert reply.status_code == 422
    assert reply.json()["field"] == field and reply.json()["error"].startswith(f"{field}: ")


@pytest.mark.parametrize("body", [b"", b"{", b"query=x", b"\xff\xfe", b'{"query": "\xed\xa0\x80"}'])
def test_body_that_is_not_json_is_refused(server: str, body: bytes) -> None:
    reply = requests.post(f"{server}/search", data=body, timeout=DEADLINE_S)
    assert (reply.status_code, reply.json()["field"]) == (400, "body")


def test_wrong_path_method_and_size_are_refused_as_json(server: str) -> None:
    assert "error" in requests.get(f"{server}/nowhere", timeout=DEADLINE_S).json()
    assert requests.get(f"{server}/search", timeout=DEADLINE_S).status_code == 405
    large = requests.post(f"{server}/search", data=b" " * (8 * 2**20 + 1), timeout=DEADLINE_S)
    assert large.status_code == 413 and "error" in large.json()


def test_64_clients_at_once_each_get_their_own_answer(server: str) -> None:
    def asks(number: int) -> bool:
        session = requests.Session()
        alone = session.post(f"{server}/search", json={"query": CONTENTS[str(number)], "top_n": 2}).json()
        both = [CONTENTS[str(number)], CONTENTS[str(63 - number)]]
        together = session.post(f"{server}/retrieve", json={"queries": both, "topk": 1}).json()
        return alone[0] == document(number) and together["result"] == [
            [document(number)],
            [document(63 - number)],
        ]

    with ThreadPoolExecutor(64) as clients:
        assert all(clients.map(asks, range(64)))


def test_port_in_use_ends_in_one_line(server: str, served_index: Path) -> None:
    port = server.rpartition(":")[2]
    run = [sys.executable, "-m", "retriever_server", "serve", str(served_index), "--port", port]
    ended = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S)
    assert ended.returncode == 1 and ended.stdout == ""
    assert (
        ended.stderr.startswith(f"Error: port {port} on 127.0.0.1 is in use: ")
        and ended.stderr.count("\n") == 1
    )


def ask_until_the_server_ends(url: str, answered: Event) -> None:
    with contextlib.suppress(requests.RequestException):
        while True:
            ask(url, "/search", {"query": "Rome"})
            answered.set()


def test_loading_is_told_and_sigterm_ends_a_busy_server(served_index: Path) -> None:
    process, url = start(served_index, "--threads", "1")
    with process, ThreadPoolExecutor(8) as clients:
        loading = requests.get(f"{url}/health", timeout=DEADLINE_S)
        assert (loading.status_code, loading.json()["status"]) == (503, "loading")
        assert loading.json()["stage"]
        assert requests.post(f"{url}/search", json={"query": "x"}, timeout=DEADLINE_S).status_code == 503
        wait_until_ready(process)
        answered = [Event() for _ in range(8)]
        asked = [clients.submit(ask_until_the_server_ends, url, each) for each in answered]
        assert all(each.wait(DEADLINE_S) for each in answered)
        process.send_signal(signal.SIGTERM)
        signalled = time.monotonic()
        assert process.wait(timeout=DEADLINE_S) == 0
        assert time.monotonic() - signalled < GRACE_S, "it waited for those who ask on"
        for each in asked:
            each.result()


def test_signal_while_loading_ends_at_once(served_index: Path) -> None:
    process, _ = start(served_index)
    with process:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=DEADLINE_S) == 0
        assert process.stdout is not None and process.stdout.read() == "", "it was ready first"


@pytest.mark.skipif(sys.platform != "linux", reason="--die-with-parent works on Linux only")
def test_server_ends_with_the_process_that_started_it(served_index: Path) -> None:
    arguments = [
        sys.executable,
        "-m",
        "retriever_server",
        "serve",
        str(served_index),
        "--port",
        "0",
        "--die-with-parent",
    ]
    recipe = f"import subprocess; p = subprocess.Popen({arguments!r}); input()"
    pipe = subprocess.PIPE
    parent = subprocess.Popen([sys.executable, "-c", recipe], cwd=ROOT, stdin=pipe, stderr=pipe, text=True)
    with parent:
        assert parent.stderr is not None
        url = parent.stderr.readline().split()[2].rstrip(",")
        parent.kill()
        parent.wait()
        address = url.removeprefix("http://").split(":")
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            with socket.socket() as attempt:
                if attempt.connect_ex((address[0], int(address[1]))) != 0:
                    return
            time.sleep(0.05)
    pytest.fail("the server outlived the process that started it")


def test_unforeseen_error_is_told_without_its_trace(served_index: Path) -> None:
    searcher = Searcher(open_store(served_index))
    served = Served()
    served.swap(searcher)
    client = create_retriever_app(served).test_client()
    assert client.post("/search", json={"query": "x"}).status_code == 200
    searcher.close()
    reply = client.post("/search", json={"query": "x"})
    assert reply.status_code == 500 and reply.get_json() == {"error": "internal error; see the server's log"}


def test_an_index_that_is_stuck_is_a_503_within_a_bound(word_index: Path) -> None:
    store, stuck = open_store(word_index), threading.Event()

    class Stuck:
        def search(self, queries: Queries, top_k: int) -> tuple[np.ndarray, np.ndarray]:
            stuck.wait(DEADLINE_S)
            return store.index.search(queries, top_k)

    served = Served()
    served.swap(Searcher(replace(store, index=Stuck()), ServingLimits(answer_s=0.2)))
    client = create_retriever_app(served).test_client()
    body = {"queries": ["spy", "", "poet"], "topk": 1}
    reply = client.post("/retrieve", json=body)
    assert reply.status_code == 503 and int(reply.headers["Retry-After"]) >= 1
    assert "2 of 2 queries have no answer after 0.2 s" in reply.get_json()["error"]
    stuck.set()
    assert client.post("/retrieve", json=body).status_code == 200  # those who ask again join what goes on


def test_errors_and_figures_are_utf8_whatever_paths_are_in_them() -> None:
    served = Served()
    served.stage = "loading /models/\udcff"
    client = create_retriever_app(served).test_client()
    assert client.get("/health").get_json()["stage"] == "loading /models/\ufffd"
    assert "\ufffd" in client.post("/search", json={"query": "x"}).get_json()["error"]
