"""The server under pressure, and in an operator's hands: exclusions, token, overload, metrics, reload, end.
Real processes, asked over HTTP by many threads.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from retriever_process import (
    CONTENTS,
    DEADLINE_S,
    ROOT,
    ask,
    build_index,
    document,
    people,
    serving,
)

TOKEN = {"Authorization": "Bearer secret"}


def ids(documents: list[dict[str, str]]) -> list[str]:
    return [entry["id"] for entry in documents]


def test_excluded_passages_make_room_for_the_next(server: str) -> None:
    query = {"query": "a spy in Oslo"}
    best = ids(ask(server, "/search", query | {"top_n": 6}))
    body = query | {"top_n": 4, "exclude_ids": [best[0], int(best[2]), "no such id"]}
    assert ids(ask(server, "/search", body)) == [best[1], best[3], best[4], best[5]]
    one = ask(server, "/retrieve", query | {"topk": 2, "exclude_ids": best[:3]})["result"]
    assert [ids(found) for found in one] == [best[3:5]]


def test_contents_are_left_out_where_they_are_not_wanted(server: str) -> None:
    body = {"query": "a spy in Oslo", "top_n": 3, "topk": 3, "return_score": True, "return_scores": True}
    documents, scores = ask(server, "/search", body)
    bare = [{"id": name} for name in ids(documents)]
    short = body | {"return_contents": False}
    assert ask(server, "/search", short) == [bare, scores]
    assert ask(server, "/batch_search", short | {"query": [body["query"]]}) == [[bare], [scores]]
    [entries] = ask(server, "/retrieve", short)["result"]
    assert [entry["document"] for entry in entries] == bare
    assert len(ids(ask(server, "/search", short | {"return_score": False}))) == 3


@pytest.mark.parametrize("route", ["/batch_search", "/retrieve"])
def test_each_query_of_a_list_excludes_its_own(server: str, route: str) -> None:
    name, limit = ("query", "top_n") if route == "/batch_search" else ("queries", "topk")
    body = {name: [CONTENTS["3"], CONTENTS["3"], CONTENTS["19"]], limit: 2}

    def found(**more: object) -> list[list[str]]:
        answer = ask(server, route, body | more)
        return [ids(entry) for entry in (answer["result"] if route == "/retrieve" else answer)]

    best, others = found(**{limit: 6})[1:]
    excluded = [[], [3, best[2]], [others[0]]]
    assert found(exclude_ids=excluded) == [best[:2], [best[1], best[3]], others[1:3]]


@pytest.mark.parametrize(
    ("route", "body", "field"),
    [
        ("/search", {"query": "x", "exclude_ids": "3"}, "exclude_ids"),
        ("/search", {"query": "x", "exclude_ids": [[3]]}, "exclude_ids.0"),
        ("/search", {"query": "x", "exclude_ids": [3, True]}, "exclude_ids.1"),
        ("/search", {"query": "x", "exclude_ids": ["3"] * 10_001}, "exclude_ids"),
        ("/batch_search", {"query": ["x"], "exclude_ids": [3]}, "exclude_ids.0"),
        ("/batch_search", {"query": ["x"], "exclude_ids": [[3], [4]]}, "exclude_ids"),
        ("/batch_search", {"query": ["x"] * 100, "top_n": 1000}, "top_n"),
        ("/retrieve", {"queries": ["x"], "exclude_ids": []}, "exclude_ids"),
        ("/retrieve", {"query": "x", "exclude_ids": [[3]]}, "exclude_ids.0.0"),
        ("/retrieve", {"queries": ["x"] * 100, "topk": 1000}, "topk"),
    ],
)
def test_malformed_exclusions_and_too_much_at_once_are_refused(
    server: str, route: str, body: dict, field: str
) -> None:
    reply = requests.post(f"{server}{route}", json=body, timeout=DEADLINE_S)
    assert (reply.status_code, reply.json()["field"]) == (422, field)


def test_the_page_is_one_file_that_needs_no_other(server: str) -> None:
    page = requests.get(server, timeout=DEADLINE_S)
    assert page.headers["Content-Type"].startswith("text/html")
    assert '<form id="form" role="search">' in page.text and "http" not in page.text


def test_a_token_guards_all_but_the_page_and_health(word_index: Path) -> None:
    with serving(word_index, "--token", "secret", "--reload") as (_, url):
        for path in ("/", "/health"):
            assert requests.get(f"{url}{path}", timeout=DEADLINE_S).status_code == 200
        for wrong in ({}, {"Authorization": "Bearer secre"}, {"Authorization": "secret"}):
            refused = requests.post(
                f"{url}/search", json={"query": "Rome"}, headers=wrong, timeout=DEADLINE_S
            )
            assert refused.status_code == 401 and "Bearer" in refused.json()["error"]
            assert requests.get(f"{url}/metrics", headers=wrong, timeout=DEADLINE_S).status_code == 401
            assert requests.post(f"{url}/reload", headers=wrong, timeout=DEADLINE_S).status_code == 401
        good = requests.post(f"{url}/search", json={"query": "Rome"}, headers=TOKEN, timeout=DEADLINE_S)
        assert good.status_code == 200
        assert requests.post(f"{url}/reload", headers=TOKEN, timeout=DEADLINE_S).status_code == 200


def test_without_a_token_nobody_reloads_over_http(server: str) -> None:
    assert requests.post(f"{server}/reload", timeout=DEADLINE_S).status_code == 404


def health(url: str) -> dict:
    return requests.get(f"{url}/health", timeout=DEADLINE_S).json()


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def figures(url: str) -> dict[str, float]:
    """The samples of /metrics by name and labels."""
    lines = requests.get(f"{url}/metrics", timeout=DEADLINE_S).text.splitlines()
    samples = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in samples}


def test_a_full_queue_answers_503_with_retry_after_and_metrics_add_up(served_index: Path) -> None:
    with serving(served_index, "--max-queue", "2", "--cache-size", "0") as (_, url):

        def asks(number: int) -> tuple[int, bool]:
            body = {"query": CONTENTS[str(number % 64)] + " " * number, "top_n": 1}
            reply = requests.post(f"{url}/search", json=body, timeout=DEADLINE_S)
            if reply.status_code == 503:
                return 503, int(reply.headers["Retry-After"]) >= 1 and "wait" in reply.json()["error"]
            return reply.status_code, reply.json() == [document(number % 64)]

        with ThreadPoolExecutor(48) as clients:
            answers = list(clients.map(asks, range(400)))
        assert all(right for _, right in answers)
        counts = Counter(status for status, _ in answers)
        assert set(counts) == {200, 503} and counts[200] >= 2
        seen = figures(url)
        for status, count in counts.items():
            assert seen[f'retriever_requests_total{{route="/search",status="{status}"}}'] == count
        assert seen['retriever_request_seconds_count{route="/search"}'] == 400
        assert seen['retriever_queries_total{path="encoded"}'] == counts[200]
        for stage in ("encode", "search"):
            assert seen[f'retriever_batch_size_sum{{stage="{stage}"}}'] == counts[200]
        assert seen["retriever_queue_length"] == seen["retriever_cache_bytes"] == 0


OLD, NEW = people(1500), people(1501)  # the same ids


def test_reload_under_load_loses_nothing_and_never_mixes_indexes(tmp_path: Path) -> None:
    index = tmp_path / "index"
    build_index(index, OLD, kind="bm25")
    stop = threading.Event()

    def asks(number: int) -> list[set[int]]:
        """For each answer the generations of its two documents: 0 old, 1 new."""
        session, seen = requests.Session(), []
        session.headers.update(TOKEN)
        queries = [OLD[number]["contents"], OLD[63 - number]["contents"]]
        while not stop.is_set():
            reply = session.post(f"{url}/retrieve", json={"queries": queries, "topk": 1}, timeout=DEADLINE_S)
            assert reply.status_code == 200, reply.text
            [[first], [second]] = reply.json()["result"]
            pairs = ((first, number), (second, 63 - number))
            seen.append({[OLD[n]["contents"], NEW[n]["contents"]].index(hit["contents"]) for hit, n in pairs})
        return seen

    with serving(index, "--token", "secret", "--reload") as (process, url), ThreadPoolExecutor(8) as clients:
        asking = [clients.submit(asks, number) for number in range(8)]
        try:
            fingerprint = health(url)["fingerprint"]
            build_index(index, NEW, kind="bm25", force=True)
            process.send_signal(signal.SIGHUP)
            wait_for(lambda: health(url)["fingerprint"] != fingerprint)
            (index / "manifest.json").rename(index / "away")
            refused = requests.post(f"{url}/reload", headers=TOKEN, timeout=DEADLINE_S)
            assert refused.status_code == 409 and "still serving the old index" in refused.json()["error"]
            assert health(url)["status"] == "healthy"
        finally:
            stop.set()
        seen = [generations for client in asking for generations in client.result()]
        assert all(len(generations) == 1 for generations in seen), "an answer from two indexes"
        assert {0} in seen and seen[-1] == {1}


def test_sigterm_finishes_what_is_in_flight(served_index: Path) -> None:
    with serving(served_index, "--cache-size", "0") as (process, url), ThreadPoolExecutor(3) as clients:

        def asks(first: int) -> bool:
            queries = [CONTENTS[str(n % 64)] + " " * (first + n) for n in range(60)]
            found = ask(url, "/retrieve", {"queries": queries, "topk": 1})["result"]
            return found == [[document(n % 64)] for n in range(60)]

        asking = [clients.submit(asks, first) for first in (0, 1000, 2000)]
        wait_for(lambda: figures(url).get('retriever_queries_total{path="encoded"}') == 180)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)  # the second is passed over
        assert [answer.result(DEADLINE_S) for answer in asking] == [True] * 3
        assert process.wait(DEADLINE_S) == 0
        with pytest.raises(requests.ConnectionError):
            health(url)


SCRIPTS = {
    "hostile.py": ["--requests", "2000"],
    "soak.py": ["--requests", "1500", "--clients", "64", "--most-growth", "0.5"],
    "kill9.py": ["--clients", "16", "--questions", "8", "--kills", "1", "--pause", "0.2"],
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_short_runs_of_the_long_checks(served_index: Path, word_index: Path, script: str) -> None:
    index = word_index if script == "kill9.py" else served_index
    run = [sys.executable, str(ROOT / "benchmarks" / script), str(index), *SCRIPTS[script]]
    ended = subprocess.run(run, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
