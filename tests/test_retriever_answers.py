"""Answers of foreign, broken and hostile retrieval servers: passages, or one line with what was wrong."""

import asyncio
import copy
import json
import time

import pytest
from flask import Flask, Response, request
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import answering, ask, retriever, serving, speaking

from research.episode.tools import SearchError
from research.episode.trajectory import Passage
from research.tools.search import RetrieverClient, RetrieverConfig

DOCUMENT = {"id": "7", "contents": "Rome\nA city."}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([[DOCUMENT | {"contents": None}], [1.0]], """"contents" of passage '7' must be a text, not None"""),
        ([[DOCUMENT | {"contents": ["a"]}], [1.0]], "must be a text, not ['a']"),
        ([[DOCUMENT | {"contents": 3}], [1.0]], "must be a text, not 3"),
        ([[{"id": "7"}], [1.0]], 'a passage must be an object with "contents"'),
        ([["Rome"], [1.0]], 'a passage must be an object with "id"'),
        ([[DOCUMENT | {"id": None}], [1.0]], '"id" of a passage must be a text or a whole number, not None'),
        ([[DOCUMENT], [float("nan")]], "the score of passage '7' must be a number, not nan"),
        ([[DOCUMENT], [10**400]], "must be a number, not 1000"),
        ([[DOCUMENT], ["0.5"]], "must be a number, not '0.5'"),
        ([[DOCUMENT], None], "the list of scores must be a list, not None"),
        ([[DOCUMENT], []], "the list of scores must be a list of 1, not of 0"),
        ([[DOCUMENT]], "the answer must be a list of 2, not of 1"),
        ({"result": [[DOCUMENT]]}, "the answer must be a list, not {"),
        ([{"0": DOCUMENT}, [1.0]], "the list of passages must be a list, not {"),
    ],
)
def test_a_malformed_answer_says_what_is_wrong_with_it(answer, message):
    calls = []
    with serving(answering(answer, calls=calls)) as url:
        (error,) = ask(url, "q")
    assert isinstance(error, SearchError) and not error.lasting and len(calls) == 1
    assert "not an answer of wire format 'research'" in str(error) and message in str(error)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"result": []}, '"result" must be a list of 1, not of 0'),
        ({"result": [[], []]}, '"result" must be a list of 1, not of 2'),
        ({"result": {"0": []}}, '"result" must be a list, not {'),
        ({"result": [[DOCUMENT]]}, 'a result must be an object with "document"'),
        ([[DOCUMENT], [1.0]], 'the answer must be an object with "result"'),
    ],
)
def test_a_malformed_answer_in_search_r1s_format_says_what_is_wrong_with_it(answer, message):
    with serving(answering(answer)) as url:
        (error,) = ask(url, "q", wire="search_r1")
    assert isinstance(error, SearchError) and message in str(error)


def test_search_r1_answers_without_scores():
    with serving(answering({"result": [[{"document": DOCUMENT}]]})) as url:
        (passages,) = ask(url, "q", wire="search_r1")
    assert passages == [Passage("7", "Rome\nA city.", None)]


def test_half_surrogates_are_replaced_both_ways():
    calls = []
    text = r'[[{"id": "\ud8007", "contents": "\uDC00 and \ud83d\ude00"}], [1]]'
    with serving(answering(text, calls=calls)) as url:
        (passages,) = ask(url, "who \ud800 is?")
    assert passages == [Passage("?7", "? and \U0001f600", 1.0)]
    assert calls[0]["query"] == "who ? is?"


@pytest.mark.parametrize(
    ("body", "status", "headers", "message"),
    [
        ("<html><title>Sign in</title>", 200, {}, "an HTML page that is not JSON: <html><title>Sign in"),
        ("", 200, {}, "an answer that is not JSON"),
        (b"\xff\xfe[", 200, {}, "not JSON"),
        ("[" * 100_000, 200, {}, "not JSON"),
        (
            "",
            302,
            {"Location": "http://127.0.0.1:9/login"},
            "HTTP 302, redirected to http://127.0.0.1:9/login",
        ),
        (
            "",
            301,
            {"Location": "/search/"},
            "HTTP 301, redirected to /search/: give the server's own address",
        ),
        (
            "who are you?",
            401,
            {},
            "HTTP 401 (the key is taken from RETRIEVER_TOKEN: it is not set): who are you",
        ),
        ("not yours", 403, {}, "HTTP 403"),
        ("no such route", 404, {}, "HTTP 404: no such route"),
        ("GET only", 405, {}, "HTTP 405: GET only"),
    ],
)
def test_what_no_repetition_would_mend_is_an_error_at_once(body, status, headers, message):
    calls = []
    with serving(answering(body, status, calls=calls, headers=headers)) as url:
        (error,) = ask(url, "q", deadline=60.0)
    assert isinstance(error, SearchError) and message in str(error) and len(calls) == 1
    assert error.lasting and "\n" not in str(error)


def test_a_server_that_has_answered_refuses_one_query_alone():
    app = retriever()
    app.before_request(lambda: ("<p>blocked</p>", 403) if "<script>" in request.get_json()["query"] else None)

    async def ask_twice(url):
        client = RetrieverClient(RetrieverConfig(url=url))
        try:
            await client("who?")
            await client("<script>")
        finally:
            await client.close()

    with serving(app) as url, pytest.raises(SearchError, match="HTTP 403") as refused:
        asyncio.run(ask_twice(url))
    assert not refused.value.lasting


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_port_that_is_no_http_is_an_error_at_once(scheme):
    with speaking(b"SSH-2.0-OpenSSH_9.6\r\n") as address:
        started = time.monotonic()
        (error,) = ask(f"{scheme}://{address}", "q", deadline=60.0)
    assert isinstance(error, SearchError) and error.lasting and time.monotonic() - started < 5
    assert "\n" not in str(error) and "attempts" not in str(error)


def test_an_address_that_is_none_is_an_error_at_once():
    (error,) = ask("http://127.0.0.1:abc", "q", deadline=60.0)
    assert isinstance(error, SearchError) and "127.0.0.1:abc" in str(error)


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def places(value, path=()):
    """The path of each value inside a JSON value, its own first."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


@st.composite
def mutations(draw, answer):
    """The answer with one to three of its parts replaced, removed or doubled."""
    answer = copy.deepcopy(answer)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places(answer))))
        if not path:
            return draw(ODD)
        holder = answer
        for key in path[:-1]:
            holder = holder[key]
        what = draw(st.sampled_from(["replace", "remove", "double"]))
        if what == "remove":
            del holder[path[-1]]
        elif what == "double" and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[path[-1]]))
        else:
            holder[path[-1]] = draw(ODD)
    return answer


GOOD = {
    "research": [[DOCUMENT, {"id": 8, "contents": "Oslo"}], [0.5, 0.25]],
    "search_r1": {"result": [[{"document": DOCUMENT, "score": 0.5}, {"document": DOCUMENT}]]},
}


@pytest.fixture(scope="module")
def mutant():
    """A server of both formats whose answer is what `body` holds, and its address."""
    app, body = Flask("mutant"), {}
    for route in ("/search", "/retrieve"):
        app.add_url_rule(
            route,
            route,
            lambda: Response(body["text"], mimetype="application/json"),
            methods=["POST"],
        )
    with serving(app) as url:
        yield url, body


@pytest.mark.parametrize("wire", ["research", "search_r1"])
@settings(max_examples=100)
@given(data=st.data())
def test_a_mutated_answer_gives_passages_or_a_search_error(wire, mutant, data):
    url, body = mutant
    body["text"] = json.dumps(data.draw(mutations(GOOD[wire])))
    (outcome,) = ask(url, "q", wire=wire)
    if isinstance(outcome, SearchError):
        assert "not an answer of wire format" in str(outcome)
        return
    for passage in outcome:
        assert isinstance(passage.id, str) and isinstance(passage.contents, str)
        passage.contents.encode(), passage.id.encode()
        assert passage.score is None or passage.score - passage.score == 0
