"""The prompts that released checkpoints were trained with, fetched from their own repositories once.

The wording belongs to the authors, so it is not part of this package: a file at a fixed commit is fetched,
checked by its SHA-256, and kept in the cache (``research.places.CACHE``). GITHUB_RAW_ENDPOINT names a mirror.
"""

import ast
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import httpx

from research.episode.prompts import with_text
from research.errors import DataError
from research.files import atomic_path
from research.places import CACHE

ENDPOINT = "https://raw.githubusercontent.com"
TIMEOUT = 30.0


@dataclass(frozen=True)
class ReferenceFile:
    """A file of a public repository at a commit, and its SHA-256."""

    repository: str
    commit: str
    path: str
    sha256: str

    @property
    def cached(self) -> Path:
        return CACHE / "reference_prompts" / f"{self.sha256[:12]}-{Path(self.path).name}"

    def text(self) -> str:
        """Its text, from the cache or fetched into it. Raises DataError."""
        try:
            content = self.cached.read_bytes() if self.cached.is_file() else self._fetch()
        except OSError as error:
            raise DataError(f"{self.cached}: cannot be read ({error.strerror}); remove it") from error
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise DataError(f"{self.cached}: is damaged; remove it to fetch it again")
        return content.decode("utf-8")

    def _fetch(self) -> bytes:
        endpoint = (os.environ.get("GITHUB_RAW_ENDPOINT") or ENDPOINT).rstrip("/")
        url = f"{endpoint}/{self.repository}/{self.commit}/{self.path}"
        try:
            answer = httpx.get(url, timeout=TIMEOUT, follow_redirects=True).raise_for_status()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = " ".join(str(error).split())
            raise DataError(
                f"a released checkpoint's prompt cannot be fetched ({reason}): put {url} at {self.cached}, "
                "or name a file with the prompt, prompt=PATH (research.prompt=PATH in a training)"
            ) from error
        if hashlib.sha256(answer.content).hexdigest() != self.sha256:
            raise DataError(f"{url}: is not the file that it was ({len(answer.content)} bytes came)")
        with atomic_path(self.cached) as temporary:
            temporary.write_bytes(answer.content)
        return answer.content


_RESEARCH = ReferenceFile(
    "Agent-RL/ReSearch",
    "4bdb872b7187ec6c19337251f57f9614ba7ce5ab",
    "src/verl/utils/dataset/template.py",
    "5aca01cf5fe424e4926e4dd7ab93274d93f01710685073010c468439a41c33a8",
)
_SEARCH_R1 = ReferenceFile(
    "PeterGriffinJin/Search-R1",
    "a14dc3a4ffc6fe88c1e95038d9738e21ba3f7a06",
    "scripts/data_process/qa_search_test_merge.py",
    "f68ff89f04e0f0f6b7d42102d15c35a43ab36a7407098fbdf7c56cd9cea577e1",
)
_SEARCH_R1_LOOP = replace(
    _SEARCH_R1,
    path="search_r1/llm_agent/generation.py",
    sha256="ab88b308db9d0b72fdbdd9a00f282ca28c20d3a63229a38959ce258daa1c063d",
)
_TONGSEARCH = ReferenceFile(
    "bigai-nlco/TongSearch-QR",
    "1cdf6a48b1d2c3d088d3de2a762b65b23ef23b00",
    "scripts/evaluation/question_rewriting.py",
    "e295fef9422118a087af39158001c882f80085dd0321350aaed1217dae818af0",
)
_TONGSEARCH_TRAINING = replace(
    _TONGSEARCH,
    path="scripts/data_process/sample_stackexchange.py",
    sha256="ac81b73210de6795f57822d677ddac7e56305a50d71ccf2129839753fa42f3a5",
)
_TONGSEARCH_ROWS = replace(
    _TONGSEARCH,
    path="scripts/data_process/build_dataset.py",
    sha256="df59591ee25977fcbc9f9abb4f01fd7ea70d6f532605efd5e05fa689b4029390",
)
_RECALL = ReferenceFile(
    "Agent-RL/ReCall",
    "7fcf4d3c6b53a0506d042274e0741a974fc39658",
    "src/re_call/inference/re_call.py",
    "6f08224ffc9342a0039974ee783eecbfc9563fd00edff4754648e630faef5f74",
)
_RECALL_TRAINING = replace(
    _RECALL,
    path="src/verl/utils/dataset/template.py",
    sha256="733987da6709dae2373c138f9f217739d012621f4ed75643fd0483a083c6f77b",
)
_RECALL_TOOLS = replace(
    _RECALL,
    path="src/flashrag/pipeline/active_pipeline.py",
    sha256="ebd6f58e2e6bd78b51c03df479de867373d7f981e196d776b22c87eb08e1e25f",
)


def _expressions(file: ReferenceFile, name: str) -> list[ast.expr]:
    """The values assigned to a name anywhere in a Python file, in order."""
    nodes = (node for node in ast.walk(ast.parse(file.text())) if isinstance(node, ast.Assign))
    return [node.value for node in nodes if any(getattr(target, "id", "") == name for target in node.targets)]


def _literal(file: ReferenceFile, name: str) -> str:
    """The longest text that is assigned to a name; ``{question}`` where an f-string puts it in."""
    return max((_text(each) for each in _expressions(file, name)), key=len)


def _text(expression: ast.expr) -> str:
    if isinstance(expression, ast.JoinedStr):
        parts = (
            str(ast.literal_eval(each)) if isinstance(each, ast.Constant) else "{question}"
            for each in expression.values
        )
        return "".join(parts)
    return str(expression.value) if isinstance(expression, ast.Constant) else ""


def _chat(system: str, user: str) -> str:
    """A prompt of research/episode/prompts, with an empty system message and line feeds at the end said."""
    ends = len(user) - len(user.rstrip("\n"))
    return f"{system or chr(34) * 2}\n---\n{user.rstrip(chr(10))}{'{newline}' * ends}\n"


def _research_base() -> str:
    return _literal(_RESEARCH, "re_search_template").format(prompt="{question}") + "\n"


def _research_instruct() -> str:
    return _chat(_literal(_RESEARCH, "re_search_template_sys"), "{question}")


def _search_r1() -> str:
    user = _literal(_SEARCH_R1, "prefix").replace("{question}", "{question?}")
    return _chat("", user).removeprefix('""\n')


def _tongsearch() -> str:
    return _chat("", _literal(_TONGSEARCH, "prompt"))


def _tongsearch_think() -> str:
    return _chat(_literal(_TONGSEARCH, "system_prompt"), _literal(_TONGSEARCH, "prompt"))


def _tongsearch_training() -> str:
    return _chat("", _literal(_TONGSEARCH_TRAINING, "DEFAULT_INSTRUCTION") + "{question}")


def _tongsearch_think_training() -> str:
    nodes = (node for node in ast.walk(ast.parse(_TONGSEARCH_ROWS.text())) if isinstance(node, ast.Return))
    system = max((_text(node.value) for node in nodes if node.value), key=len)
    return _chat(system, _literal(_TONGSEARCH_TRAINING, "DEFAULT_INSTRUCTION") + "{question}")


def _recall() -> str:
    return _with_tools(_literal(_RECALL, "system_prompt"))


def _recall_training() -> str:
    return _with_tools(_literal(_RECALL_TRAINING, "re_call_template_sys"))


def _with_tools(system: str) -> str:
    schemas = ast.literal_eval(_expressions(_RECALL_TOOLS, "wikipedia_search_schemas")[0])
    return _chat(system.format(func_schemas=json.dumps(schemas, indent=4)), "{question}")


def _search_r1_invalid_turn() -> str:
    calls = (each for each in ast.walk(ast.parse(_SEARCH_R1_LOOP.text())) if isinstance(each, ast.Call))
    return max(
        (_text(each.args[0]) for each in calls if ast.unparse(each.func) == "next_obs.append"), key=len
    )


PROMPTS: dict[str, Callable[[], str]] = {
    "recall": _recall,
    "recall_training": _recall_training,
    "research_base": _research_base,
    "research_instruct": _research_instruct,
    "search_r1": _search_r1,
    "tongsearch_qr": _tongsearch,
    "tongsearch_qr_think": _tongsearch_think,
    "tongsearch_qr_think_training": _tongsearch_think_training,
    "tongsearch_qr_training": _tongsearch_training,
}
"""Prompts by name; each call reads the cache, or fetches."""


NOTICES: dict[str, Callable[[], str]] = {"search_r1": _search_r1_invalid_turn}
"""Notices that ``protocol.invalid_turn`` can name."""


def prompt_to_keep(prompt: str) -> str:
    """The prompt as a configuration keeps it: as in :func:`with_text`, a released checkpoint's as its text.

    Raises:
        ValueError: as :func:`with_text`. DataError: it cannot be fetched, or has changed.
    """
    return PROMPTS[prompt]() if prompt in PROMPTS else with_text(prompt)


def notice_to_keep(notice: str) -> str:
    """The same for the notice after an invalid turn. Raises DataError."""
    return NOTICES[notice]() if notice in NOTICES else notice
