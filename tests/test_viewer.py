"""The viewer without its page: files that grow, filters, pairs, texts, the API and the command line."""

import json
import socket
import time
from dataclasses import asdict, replace

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from run_folder import episode, make_run, write_episodes

from research.episode.protocol import Protocol
from research.episode.trajectory import Call, Passage, Segment
from research.files import append_line
from research.training.run_files import trajectory_path
from research.viewer import catalogue as catalogue_module
from research.viewer.__main__ import main
from research.viewer.app import viewer_app
from research.viewer.catalogue import Catalogue
from research.viewer.files import Source
from research.viewer.pairs import pair
from research.viewer.rows import make_row
from research.viewer.view import gold_found, trajectory_view

LONG = 60.0  # seconds: all there is


def loaded(path):
    source = Source(path)
    assert source.refresh(LONG)
    return source


def client_of(*paths, host="127.0.0.1"):
    client = viewer_app(Catalogue([Source(path) for path in paths]), host).test_client()
    assert client.get("/api/state").json["done"]
    return client


def listed(client, **query):
    """The list of some filters; None if they are refused."""
    reply = client.get("/api/list", query_string=query)
    return reply.json if reply.status_code == 200 else None


def ids(answer, side="left"):
    return [entry[side] and entry[side]["id"] for entry in answer["entries"]]


@pytest.fixture
def run(tmp_path):
    """Two steps of four samples each, and a validation."""
    folder = make_run(tmp_path / "run")
    for step in (1, 2):
        write_episodes(folder, "train", step, *(episode(n, n % 2, step=step) for n in range(4)))
    write_episodes(folder, "validation", 2, episode(9, 1.0, source="validation_3hop", step=2))
    return folder


def test_a_growing_file_is_scanned_once_and_a_half_written_line_is_left_out(run):
    source = loaded(run)
    rows, version = source.rows, source.version
    assert [(row.split, row.step, row.id) for row in rows[:5]] == [
        *(("train", 1, f"q{n}") for n in range(4)),
        ("train", 2, "q0"),
    ]
    assert source.refresh(LONG) and source.version == version
    path, line = trajectory_path(run, 2, "train"), episode(7, 1.0, step=2).to_json()
    with path.open("a") as file:
        file.write(line[:50])
    assert source.refresh(LONG) and source.rows == rows
    assert source.faults == ["step_2.jsonl, line 5 is no trajectory: cut off, or still being written"]
    for rest in (line[50:], "\n"):  # whole before its end is there
        with path.open("a") as file:
            file.write(rest)
        source.refresh(LONG)
        assert source.version > version and len(source.rows) == len(rows) + 1 and not source.faults
    assert set(rows) < set(source.rows), "what was scanned before was scanned again"
    row, trajectory = source.read("step_2.jsonl:5")
    assert row.id == "q7" and trajectory.to_json() == line
    write_episodes(run, "train", 3, episode(1, 1.0, step=3))
    source.refresh(LONG)
    assert max(row.step for row in source.rows) == 3


def test_steps_that_are_run_again_replace_the_old_ones(run):
    source = loaded(run)
    path = trajectory_path(run, 2, "train")
    path.write_text("".join(episode(n, 0.0, step=2).to_json() + "\n" for n in (20, 21, 22, 23, 24)))
    source.refresh(LONG)
    assert [row.id for row in source.rows if row.file == path.name] == ["q20", "q21", "q22", "q23", "q24"]
    path.unlink()
    source.refresh(LONG)
    assert not [row for row in source.rows if row.file == path.name]


def test_scanning_and_searching_take_a_slice_of_time(run, monkeypatch):
    source = Source(run)
    assert not source.refresh(0) and len(source.rows) == 1
    monkeypatch.setattr(catalogue_module, "SLICE_S", 0)
    client = viewer_app(Catalogue([Source(run)]), "127.0.0.1").test_client()
    states = [client.get("/api/state").json for _ in range(12)]
    assert states[0]["scanned"] < states[0]["size"] == states[-1]["scanned"] and states[-1]["done"]
    monkeypatch.setattr(
        catalogue_module.TextSearch, "advance", _one_more(catalogue_module.TextSearch.advance)
    )
    answers = [listed(client, text="because") for _ in range(10)]
    assert [answer["total"] for answer in answers] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 9]
    assert answers[-1]["complete"] and not answers[0]["complete"]


def _one_more(advance):
    """The same, but for one row more a call, as if each took a whole slice of time."""

    def slow(self, source, rows, until):
        rows = list(rows)
        new = [row for row in rows if row not in self._known]
        advance(self, source, new[:1], time.monotonic() + LONG)
        return len(new) <= 1

    return slow


def test_a_broken_line_is_named_and_the_others_are_shown(run):
    path = trajectory_path(run, 1, "train")
    written = asdict(episode(1, 1.0))
    broken = {
        '{"prompt_ids": [1], "seg{"prompt_ids"': "Expecting",
        "[]": "should be a dictionary",
        "7": "should be a dictionary",
        "[" * 100_000: "nested too deeply",
        json.dumps({**written, "schema": 2}): "schema: Unexpected keyword",
        json.dumps({**written, "segments": None}): "segments: ",
        json.dumps({**written, "metadata": {"step": 1e400}}): "metadata.step: inf is no whole number",
    }
    for line in broken:
        append_line(path, line)
    with path.open("ab") as file:
        file.write(b"\xff\n\n")  # the second is no line to complain of
    write_episodes(run, "train", 1, episode(8, 1.0, step=1))
    source = loaded(run)
    for number, (fault, reason) in enumerate(zip(source.faults, [*broken.values(), "utf-8"], strict=True)):
        assert fault.startswith(f"step_1.jsonl, line {5 + number} is no trajectory: ") and reason in fault
    assert source.read("step_1.jsonl:14")[0].id == "q8"
    state = client_of(run).get("/api/state").json
    assert state["faults"] == {"count": 8, "first": source.faults[:5]}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)
FIELDS = [*asdict(episode(1, 1.0)), "golden_answers", "supporting_ids", "supporting_titles"]
FIELDS += [*episode(1, 1.0).metadata, "method", "dataset", "error"]


@settings(max_examples=40)
@given(field=st.sampled_from(FIELDS), value=JSON, missing=st.booleans())
def test_a_line_with_an_odd_field_is_shown_or_named(tmp_path_factory, field, value, missing):
    path = tmp_path_factory.mktemp("odd") / "some.jsonl"
    row = asdict(with_passage(episode(1, 1.0)))
    holder = row if field in row else row["metadata"]
    holder[field] = value
    if missing:
        del holder[field]
    append_line(path, json.dumps(row))
    append_line(path, episode(2, 1.0).to_json())
    client = client_of(path)
    for sort in ("step", "reward", "question"):
        shown = listed(client, text="x", sort=sort)["entries"]
        assert "q2" in [entry["left"]["id"] for entry in shown]
    assert client.get("/api/state").json["faults"]["count"] + listed(client)["total"] == 2
    for entry in shown:
        assert client.get(f"/api/trajectory?key={entry['left']['key']}").status_code == 200


def with_passage(one):
    return replace(one, calls=[Call("who", [Passage("1", "Oslo\nThe capital.", 0.5)], shown=1)])


def test_what_is_nested_too_deeply_to_show_is_said(tmp_path):
    line = replace(episode(1, 1.0), metadata={"odd": "deep"}).to_json()
    append_line(tmp_path / "some.jsonl", line.replace('"deep"', "[" * 700 + "]" * 700))
    reply = client_of(tmp_path / "some.jsonl").get("/api/trajectory?key=some.jsonl:1")
    assert reply.status_code == 422 and "nested too deeply" in reply.json["error"]


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("research: [", "while parsing"),
        ("research: 5", "there is no section for protocol"),
        ("- 1", "there is no section for research"),
        ("research: {protocol: {think: 3}}", "think: Input should be a valid string"),
        ("research: {protocol: {thnk: think}}", "thnk"),
        ("research: {protocol: '${nowhere}'}", "nowhere"),
        ("\0", "special characters"),
    ],
)
def test_a_configuration_that_names_no_protocol_is_a_notice(run, config, reason):
    (run / "config.yaml").write_text(config)
    (run / "recipe.json").write_text("[]")
    for path in (run, trajectory_path(run, 1, "train")):
        client = client_of(path)
        [notice] = client.get("/api/state").json["notices"]
        assert str(run / "config.yaml") in notice and reason in notice and "\n" not in notice
        assert client.get("/api/trajectory?key=step_1.jsonl:1").json["answer"] == "x"


def test_filters(run):
    client = client_of(run)
    assert listed(client)["total"] == 9
    assert [entry["left"]["step"] for entry in listed(client, limit=2)["entries"]] == [2, 2]
    assert ids(listed(client, verdict="right", step_max=1, order="asc")) == ["q1", "q3"]
    assert ids(listed(client, split="validation")) == ["q9"] == ids(listed(client, source="validation_3hop"))
    assert listed(client, reward_min=0.5)["total"] == 5 and listed(client, reward_max=0.5)["total"] == 4
    assert listed(client, searches_min=2)["total"] == 0 and listed(client, searches_max=1)["total"] == 9
    assert listed(client, control="")["total"] == 9 and listed(client, finish="length")["total"] == 0
    assert ids(listed(client, sort="question", order="asc", offset=7)) == ["q3", "q9"]
    assert listed(client, a="step_1.jsonl:2", order="asc")["position"] == 1
    assert listed(client, a="step_1.jsonl:2", verdict="wrong")["position"] is None


def test_old_metadata_and_values_that_are_no_numbers(tmp_path):
    bare = replace(episode(1, 1.0), metadata={}, metrics={"em": float("nan")}, reward=float("nan"))
    path = tmp_path / "some.jsonl"
    append_line(path, bare.to_json())
    client = client_of(path)
    [entry] = listed(client, sort="reward")["entries"]
    assert (entry["left"]["step"], entry["left"]["reward"], entry["left"]["split"]) == (None, None, "")
    found = json.loads(client.get("/api/trajectory?side=0&key=some.jsonl:1").text, parse_constant=pytest.fail)
    assert found["reward"] == "nan" == found["metrics"]["em"] and found["question"] == ""


def test_text_is_found_in_what_was_said_and_not_in_keys(tmp_path):
    path = tmp_path / "some.jsonl"
    said = ['He said "Straße\nnach Ürümqi"', "<b>&amp;</b>", "plain"]
    for number, text in enumerate(said):
        append_line(path, episode(number, 1.0, text=text).to_json())
    client = client_of(path)
    for text, found in {
        'said "straße\nNACH ür': ["q0"],
        "<B>&AMP;": ["q1"],
        "question 2": ["q2"],
        "Y & Z": ["q0", "q1", "q2"],
        "token_ids": [],
        "\\": ["q0", "q1", "q2"],  # of \boxed
    }.items():
        assert ids(listed(client, text=text)) == found, text
    append_line(path, episode(3, 1.0, text="plain as well").to_json())
    client.get("/api/state")
    assert ids(listed(client, text="plain")) == ["q2", "q3"]


def test_pairs_by_question_and_sample(tmp_path):
    before, after = make_run(tmp_path / "before"), make_run(tmp_path / "after")
    for step in (1, 2):
        write_episodes(before, "train", step, episode(1, 0.0, step=step), episode(2, 1.0, step=step))
        write_episodes(after, "train", step, episode(2, 0.0, step=step), episode(3, 1.0, step=step))
    entries = pair(loaded(before).rows, loaded(after).rows)
    assert [(e.left and e.left.step, e.right and e.right.step, e.verdicts) for e in entries] == [
        (1, None, (False, None)),
        (1, 1, (True, False)),
        (2, None, (False, None)),
        (2, 2, (True, False)),
        (None, 1, (None, True)),
        (None, 2, (None, True)),
    ]
    client = client_of(before, after)
    assert (
        ids(listed(client, verdict="differ", step_max=1))
        == ["q2"]
        == ids(listed(client, verdict="lost", step_min=2))
    )
    assert ids(listed(client, verdict="unpaired", order="asc"), "right") == [None, "q3", None, "q3"]
    assert listed(client, sort="gain", order="asc")["entries"][0]["left"]["id"] == "q2"
    assert listed(client, a="step_1.jsonl:2", b="step_1.jsonl:1", order="asc")["position"] is not None


def test_pairs_of_different_steps_methods_and_kinds(tmp_path):
    run = make_run(tmp_path / "run")
    for step, em in ((0, 0.0), (4, 1.0)):
        write_episodes(run, "test", step, episode(1, em, step=step), episode(2, em, step=step))
    zero, four = (loaded(trajectory_path(run, step, "test")) for step in (0, 4))
    assert [entry.verdicts for entry in pair(zero.rows, four.rows)] == [(False, True)] * 2
    evaluation = tmp_path / "evaluation"
    for method in ("agent", "direct"):
        metadata = {"dataset": "musique", "method": method, "id": "q1", "question": "Question 1?"}
        append_line(evaluation / "predictions.jsonl", replace(episode(1, 1.0), metadata=metadata).to_json())
    found = pair(loaded(run).rows, loaded(evaluation).rows)
    assert [(e.left.step, e.right and e.right.method) for e in found] == [(4, "direct"), (4, None)]
    assert len(pair(loaded(evaluation).rows, loaded(evaluation).rows)) == 2


def test_gold_passages_by_id_and_by_title():
    shown = [Passage("7", "Oslo\nThe capital."), Passage("8", '"Lima"\nA city of x.'), Passage("9", "Rome\n")]
    one = episode(1, 1.0)
    one.calls = [Call("where", shown, shown=2)]
    assert gold_found(one) is None
    one.metadata |= {"supporting_ids": [7, 9], "supporting_titles": ["Oslo", "lima"]}
    assert gold_found(one) == {"total": 2, "found": 1}
    row = make_row(one, Protocol(), file="f", line=1, offset=0, split="")
    passages = trajectory_view(row, one, Protocol())["found_searches"][0]["passages"]
    assert [(p["gold"], p["shown"], p["answer"]) for p in passages] == [
        ("id", True, False),
        ("title", True, True),
        ("id", False, False),
    ]
    one.metadata["supporting_ids"] = ["of another corpus"]
    assert gold_found(one) == {"total": 2, "found": 2}


def test_the_protocol_is_that_of_the_run(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "config.yaml").write_text("research: {protocol: {think: reason, boxed: false}}")
    one = episode(1, 1.0)
    one.segments[0].text = "<reason>so</reason><search>who</search>"
    write_episodes(run, "train", 1, one)
    for path in (run, trajectory_path(run, 1, "train")):
        found = client_of(path).get("/api/trajectory?key=step_1.jsonl:1").json
        assert [piece["kind"] for piece in found["segments"][0]["pieces"]] == ["think", "search"]
        assert found["answer"] == "\\boxed{x}"


def test_calls_of_any_tool_are_pieces(tmp_path):
    """Those that the loop carried out, refused as they were empty, and did not reach any more."""
    one = episode(1, 0.0)
    turn = Segment("model", [1], [-0.1], "<think>t</think><calculate>1+1</calculate>\n")
    refused = replace(turn, text="<count> </count>")
    found = replace(one.segments[1])
    one.segments = [turn, found, refused, found, replace(turn, text="so <weigh>x</weigh>")]
    one.calls = [Call('{"expression": "1+1"}', tool="calculate", text="2"), Call(None, error="nothing")]
    one.finish_reason = "search_limit"
    old = episode(2, 1.0).to_json().replace('"calls"', '"searches"').replace(', "tool": "search"', "")
    (tmp_path / "step_1.jsonl").write_text(f"{one.to_json()}\n{old}\n")
    client = client_of(tmp_path / "step_1.jsonl")
    keys = ("step_1.jsonl:1", "step_1.jsonl:2")
    shown, before = (client.get(f"/api/trajectory?key={key}").json for key in keys)
    kinds = [[piece["kind"] for piece in segment["pieces"]] for segment in shown["segments"]]
    assert kinds == [["think", "search"], ["result"], ["search"], ["result"], ["text", "search"]]
    assert shown["found_searches"][0]["query"] == 'calculate {"expression": "1+1"}'
    assert [piece["kind"] for piece in before["segments"][0]["pieces"]] == ["think", "search"]


def test_hostile_text_and_requests(run):
    client = client_of(run)
    reply = client.get("/")
    assert reply.status_code == 200 and "default-src 'none'" in reply.headers["Content-Security-Policy"]
    assert client.get("/page/main.js").status_code == 200
    for path in ("/page/../app.py", "/page/%2e%2e/app.py", "/etc/passwd", "/api/nothing"):
        assert client.get(path).status_code == 404
    for key in ("../config.yaml:1", "/etc/passwd:1", "step_1.jsonl", "step_1.jsonl:0", "step_1.jsonl:99", ""):
        assert client.get("/api/trajectory", query_string={"key": key}).status_code == 404
    assert client.get("/api/trajectory?side=7&key=step_1.jsonl:1").status_code == 404
    assert client.get("/api/trajectory?side=-1&key=step_1.jsonl:1").status_code == 400
    for query in ({"verdict": "maybe"}, {"step_min": "x"}, {"path": "/etc/passwd"}, {"offset": "-1"}):
        assert listed(client, **query) is None


def test_only_known_hosts_are_answered(run):
    client = client_of(run, host="Lab-Machine")
    own = [
        f"{socket.gethostname()}:8080",
        socket.getfqdn(),
        f"{socket.gethostname().partition('.')[0]}.local",
    ]
    addresses = ["127.0.0.1:8080", "[::1]:8080", "192.168.7.9:8080", "10.0.0.3", "[2001:db8::7]:8080"]
    for host in ("localhost", "lab-machine:8080", "lab-machine.:8080", *own, *addresses):
        assert client.get("/api/list", headers={"Host": host}).status_code == 200
    for host in (
        "evil.example",
        "127.0.0.1.evil.example:8080",
        "localhost.evil.example",
        "lab-machine@evil.example",
        "192.168.7.9.evil.example",
        "[::1",
        "",
    ):
        assert client.get("/api/list", headers={"Host": host}).status_code == 400


def test_the_command_says_what_is_wrong_in_one_line(tmp_path, run):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hello\n")
    listener = socket.create_server(("127.0.0.1", 0))
    port = str(listener.getsockname()[1])
    for arguments, expected in {
        (str(tmp_path / "nowhere"),): "no such file or folder",
        (str(tmp_path / "empty"),): "no trajectories",
        (str(tmp_path / "notes.txt"),): "notes.txt, line 1 is no trajectory",
        (str(run), str(tmp_path / "empty")): "no trajectories",
        (str(run), "--port", port): f"port {port} on 127.0.0.1 is in use",
    }.items():
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 1 and expected in result.stderr and result.stderr.count("\n") == 1
    assert "Examples:" in CliRunner().invoke(main, ["--help"]).stdout
    listener.close()
