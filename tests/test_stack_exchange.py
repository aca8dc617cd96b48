"""Rows of StackExchange as posts: each form, HTML as text, faults by line."""

import json
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stack_rows import jsonl, row

from research.datasets.stack_exchange.dump import IMAGE, Post, Reading, read_posts
from research.datasets.stack_exchange.html_text import is_html, plain_text, plain_title
from research.errors import DataError


def one_post(tmp_path: Path, row: dict[str, Any], **reading: Any) -> Post:
    (post,) = read_posts(jsonl(tmp_path / "site.jsonl", [row]), Reading(**reading))
    return post


def test_positives_as_they_stand(tmp_path):
    post = one_post(tmp_path, {"question": "why is a < b?", "positives": ["since", "since", "so"], "id": 7})
    assert (post.id, post.question, post.positives) == ("site_7", "why is a < b?", ("since", "so"))


def test_title_and_body_make_the_question(tmp_path):
    given = {"title": "Q &amp; A", "body": "<p>Is it <em>so</em>?</p>", "positives": ["yes"], "site": "law"}
    post = one_post(tmp_path, given)
    assert (post.question, post.source) == ("Q & A\nIs it so?", "law")


def test_an_accepted_answer_is_the_positive(tmp_path):
    answers = [
        {"text": "<p>most votes</p>", "pm_score": 9, "selected": False},
        {"text": "<p>accepted</p>", "pm_score": 1, "selected": True},
    ]
    post = one_post(tmp_path, row(3, answers=answers))
    assert (post.id, post.source, post.positives) == ("math_3", "math", ("accepted",))


def test_without_an_accepted_answer_votes_decide(tmp_path):
    scores = {"a": 1, "b": 2, "c": 7, "d": 4}
    answers = [{"body": text, "score": score, "is_accepted": False} for text, score in scores.items()]
    assert one_post(tmp_path, row(0, answers=answers), most=2).positives == ("c", "d")
    assert one_post(tmp_path, row(0, answers=answers), least_score=5).positives == ("c",)
    assert one_post(tmp_path, row(0, answers=[{"answer": "a", "votes": 3}])).positives == ("a",)


def test_array_and_parquet_are_read_too(tmp_path):
    rows = [row(number) for number in range(3)]
    array = tmp_path / "rows.json"
    array.write_text(json.dumps(rows, indent=1))
    table = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), table)
    expected = [post.question for post in read_posts(jsonl(tmp_path / "rows.jsonl", rows), Reading())]
    for path in (array, table):
        assert [post.question for post in read_posts(path, Reading())] == expected
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"broken\.parquet: cannot be read"):
        list(read_posts(broken, Reading()))


@pytest.mark.parametrize(
    "fault, message",
    [
        ([], "must be a JSON object"),
        ({"positives": []}, 'needs "question", or "title" and "body"'),
        ({"title": "t", "positives": []}, 'needs "question", or "title" and "body"'),
        ({"question": 3, "positives": []}, '"question" must be a string'),
        ({"question": "\ud800", "positives": []}, "half a surrogate"),
        ({"question": "q"}, 'needs "positives" or "answers"'),
        ({"question": "q", "positives": "text"}, '"positives" must be a list'),
        ({"question": "q", "positives": ["a", 1]}, r'"positives"\[1\] must be a string'),
        ({"question": "q", "answers": ["a"]}, r'"answers"\[0\] must be an object'),
        ({"question": "q", "answers": [{"text": "a"}]}, r'"answers"\[0\] needs a score'),
        ({"question": "q", "answers": [{"pm_score": 1}]}, r'"answers"\[0\] needs "text"'),
        ({"question": "q", "answers": [{"text": "a", "score": "9"}]}, "score must be a number"),
        ({"question": "q", "answers": [{"text": "a", "selected": 1}]}, "acceptance must be true or false"),
        ({"question": "q", "positives": [], "id": 1.5}, "id must be a string or an integer"),
        ({"question": "q", "positives": [], "source": 3}, '"source" must be a string'),
    ],
)
def test_faults_are_named_by_file_and_line(tmp_path, fault, message):
    path = jsonl(tmp_path / "rows.jsonl", [row(0), fault])
    with pytest.raises(DataError, match=r"rows\.jsonl:2: .*" + message):
        list(read_posts(path, Reading()))


@pytest.mark.parametrize(
    "html, text",
    [
        ("<p>one\n two</p>\n\n<p>three<br>four</p>", "one two\n\nthree\nfour"),
        ("<p>a &lt; b &amp;&amp; <a href='x'>c</a></p>", "a < b && c"),
        ("<pre><code>if a:\n    b\n</code></pre><p>done</p>", "if a:\n    b\n\ndone"),
        ("<ul>\n<li><p>first</p></li>\n<li>second</li>\n</ul>", "- first\n\n- second"),
        ("<p>x<script>evil()</script>y</p>", "xy"),
        ("<p>never closed <b>bold", "never closed bold"),
        ("<p>a<!-- <p>no --> b <br/>c < d <a title='x > y'>e</a>", "a b\nc < d e"),
        ("<p>&#65;&#x41;" + "&#" + "9" * 5000 + ";</p>", "AA\ufffd;"),
        ("<p>x<style>p {}", "x"),
    ],
)
def test_html_becomes_what_a_reader_sees(html, text):
    assert is_html(html) and plain_text(html) == text


@pytest.mark.parametrize("text", ["if a <b and c> d", "use `<p>` here", "vector<int> v;", "<preface> x"])
def test_plain_text_stays_as_it_is(tmp_path, text):
    assert one_post(tmp_path, {"question": text, "positives": []}).question == text


@settings(max_examples=200)
@given(st.text(st.sampled_from("<>/&;!-pbre licod\n\"'=x"), max_size=60))
def test_any_html_is_read(html):
    assert "\n\n\n" not in plain_text(html)


OPEN = [
    "<",
    "</",
    "<!",
    "<!--",
    "<?",
    "<a ",
    "<a/",
    "</a ",
    "<p",
    "<p a='",
    '<p a="',
    "<script",
    "<script>",
    "</script",
]
OPEN += ["![", "![a", "![ ", "<![CDATA[", "&", "&#9", " ", "\n", "<img", "]", "](", "<pre>", "<li>"]


@pytest.mark.parametrize("unit", OPEN)
def test_html_that_never_ends_is_read_in_one_pass(unit):
    """Two seconds at most; from quadratic readers it would take minutes."""
    text = unit * (300_000 // len(unit)) + "x"
    for read in (plain_text, is_html, plain_title, IMAGE.search):
        began = time.process_time()
        read(text)
        assert time.process_time() - began < 2


@pytest.mark.parametrize(
    ("text", "has_image"),
    [("![a](b)", True), ("![a ![b][1]", True), ("![", False), ("![a\nb](c)", False), ("![a] (b)", False)],
)
def test_a_post_with_an_image_is_marked(tmp_path, text, has_image):
    assert one_post(tmp_path, {"question": text, "positives": []}).has_image == has_image
