"""Released checkpoints' prompts: fetched once, checked, kept, and read out of their authors' files."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask, Response
from loopback import serving

from research.datasets import reference_prompts
from research.datasets.reference_prompts import NOTICES, PROMPTS, ReferenceFile, prompt_to_keep
from research.episode.prompts import build_prompt, load_prompt
from research.episode.protocol import Protocol
from research.episode.tokens import TokenProtocol
from research.errors import DataError

CONTENT = b'prompt = """Look it up with {{tags}}: {prompt}."""\n'
FILE = ReferenceFile("someone/project", "c0ffee", "src/template.py", hashlib.sha256(CONTENT).hexdigest())
# Files of the same form as the references', in other words.
FORMS = {
    "_RESEARCH": 're_search_template = """Base {{x}}: {prompt}. Go:"""\n'
    're_search_template_sys = """Sys \\\\boxed{a b}."""\n',
    "_SEARCH_R1": 'def make_prefix(dp):\n    question = dp["q"]\n'
    '    prefix = f"""Find <answer> A </answer>: {question}\\n"""\n    return prefix\n',
    "_SEARCH_R1_LOOP": "def execute(next_obs, r):\n    next_obs.append('')\n"
    "    next_obs.append(f'<i>{r.pop()}</i>')\n"
    "    next_obs.append(f'\\nNot an action, whatever it was. Again.\\n')\n",
    "_TONGSEARCH": "def a(question):\n"
    '    prompt = (f"Do:\\n" f"Query: {question}\\n\\n")\ndef main(t):\n    if t:\n'
    '        system_prompt = ("Think " "first.")\n    else:\n        system_prompt = ""\n',
    "_TONGSEARCH_TRAINING": "DEFAULT_INSTRUCTION = (\n    f'Do:\\n'\n    f'Question: '\n)\n",
    "_TONGSEARCH_ROWS": "def build(t):\n    if not t:\n        return ''\n    return ('Think ' 'well.')\n",
    "_RECALL": 'class ReCall:\n    system_prompt = """Tools: {func_schemas} <c>{{"name": <n>}}</c>"""\n'
    "    def init(self):\n        system_prompt = f'<s>{self.system_prompt}'\n",
    "_RECALL_TRAINING": 're_call_template_sys = """T: {func_schemas} {{}}"""\n',
    "_RECALL_TOOLS": 'wikipedia_search_schemas = [{"name": "wiki"}]\n'
    "wikipedia_search_schemas = json.dumps(wikipedia_search_schemas)\n",
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(reference_prompts, "CACHE", tmp_path)
    yield tmp_path


@pytest.fixture
def forms(monkeypatch: pytest.MonkeyPatch) -> None:
    """The references' files with other words in them, as if they had been fetched."""
    for name, text in FORMS.items():
        file = ReferenceFile("own/words", "0", f"{name}.py", hashlib.sha256(text.encode()).hexdigest())
        file.cached.parent.mkdir(exist_ok=True)
        file.cached.write_text(text)
        monkeypatch.setattr(reference_prompts, name, file)


def repository(contents: list[bytes], paths: list[str]) -> Flask:
    app = Flask("raw")

    @app.get("/<path:path>")
    def raw(path: str) -> Response:
        paths.append(path)
        return Response(contents[0]) if contents else Response("gone", status=404)

    return app


def test_a_file_is_fetched_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths: list[str] = []
    with serving(repository([CONTENT], paths)) as url:
        monkeypatch.setenv("GITHUB_RAW_ENDPOINT", url)
        assert FILE.text() == FILE.text() == CONTENT.decode()
    assert paths == ["someone/project/c0ffee/src/template.py"]
    assert [each.read_bytes() for each in (cache / "reference_prompts").iterdir()] == [CONTENT]


@pytest.mark.parametrize(("contents", "said"), [([b"other"], "is not the file that it was"), ([], "404")])
def test_another_file_or_none_is_refused_and_nothing_kept(
    cache: Path, monkeypatch: pytest.MonkeyPatch, contents: list[bytes], said: str
) -> None:
    with serving(repository(contents, [])) as url:
        monkeypatch.setenv("GITHUB_RAW_ENDPOINT", url)
        with pytest.raises(DataError, match=said):
            FILE.text()
    assert not list(cache.glob("reference_prompts/*"))


def test_without_a_network_one_line_says_what_to_put_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_RAW_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(DataError) as caught:
        FILE.text()
    message = str(caught.value)
    assert "\n" not in message and str(FILE.cached) in message and "prompt=PATH" in message
    FILE.cached.parent.mkdir()
    FILE.cached.write_bytes(CONTENT)
    assert FILE.text() == CONTENT.decode()


def test_a_damaged_copy_is_named() -> None:
    FILE.cached.parent.mkdir()
    FILE.cached.write_bytes(CONTENT[:-1])
    with pytest.raises(DataError, match="damaged"):
        FILE.text()


def asked(prompt: str, tokens: TokenProtocol, question: str = "Who was it") -> str:
    text = prompt_to_keep(prompt)
    load_prompt(text)
    return tokens.decode(build_prompt(text, question, tokens))


CHAT = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"


@pytest.mark.usefixtures("forms")
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("research_base", "Base {x}: Who was it. Go:"),
        ("research_instruct", "[system]Sys \\boxed{a b}.[user]Who was it[assistant]"),
        ("search_r1", "[user]Find <answer> A </answer>: Who was it?\n[assistant]"),
        ("tongsearch_qr", "[system][user]Do:\nQuery: Who was it\n\n[assistant]"),
        ("tongsearch_qr_think", "[system]Think first.[user]Do:\nQuery: Who was it\n\n[assistant]"),
        ("tongsearch_qr_think_training", "[system]Think well.[user]Do:\nQuestion: Who was it[assistant]"),
        ("tongsearch_qr_training", "[system][user]Do:\nQuestion: Who was it[assistant]"),
    ],
)
def test_prompts_are_read_out_of_their_files(text_tokens: TokenProtocol, name: str, expected: str) -> None:
    tokens = TokenProtocol(text_tokens.tokenizer, Protocol())
    before, tokens.tokenizer.chat_template = tokens.tokenizer.chat_template, CHAT
    try:
        assert asked(name, tokens) == expected
    finally:
        tokens.tokenizer.chat_template = before


@pytest.mark.usefixtures("forms")
def test_recalls_prompt_has_its_tools_and_search_r1s_notice_its_words() -> None:
    schemas = json.dumps([{"name": "wiki"}], indent=4)
    assert prompt_to_keep("recall") == f'Tools: {schemas} <c>{{"name": <n>}}</c>\n---\n{{question}}\n'
    assert prompt_to_keep("recall_training") == f"T: {schemas} {{}}\n---\n{{question}}\n"
    assert NOTICES["search_r1"]() == "\nNot an action, whatever it was. Again.\n"
    assert set(PROMPTS) >= {"recall", "search_r1"}


def test_a_question_mark_is_put_where_there_is_none(text_tokens: TokenProtocol) -> None:
    for question, said in ((" Who ", "Who?"), ("Who?", "Who?"), ("Who? ", "Who?")):
        ids = build_prompt("ask: {question?}{newline}", question, text_tokens)
        assert text_tokens.decode(ids) == f"ask: {said}\n"
