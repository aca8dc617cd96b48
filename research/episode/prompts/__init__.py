"""Prompts: built in, one text file each, a file of your own by its path, or the text itself.

With a line ``---`` the part above it is the system message and the part below it the user message, both put
through the model's own chat template. An empty part above sends no system message, and templates such as
Qwen2.5's then insert their own; ``""`` sends an empty one. Without such a line the text is used as it is, for
base models. In built-in ones, lines that start with ``#`` at the top are comments.

``{question}`` is the question, ``{question?}`` the same with a question mark added if it has none, and
``{newline}`` a line feed at either end, where ordinary ones are stripped.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from research.episode.tokens import TokenProtocol

DIRECTORY = Path(__file__).parent
_PLACE = re.compile(r"\{([a-z]+\??)\}")
_QUESTIONS = ("{question}", "{question?}")
_DIVIDER = re.compile(r"^---[ \t\r]*\n", re.MULTILINE)
_COMMENTS = re.compile(r"\A(#.*\n)+")


def prompt_names() -> list[str]:
    """The names that :func:`load_prompt` knows, sorted."""
    return sorted(path.stem for path in DIRECTORY.glob("*.txt"))


class Prompt(NamedTuple):
    """The parts of a prompt; `system` is None if there is none, or without `chat`, a chat template."""

    system: str | None
    user: str
    chat: bool


def with_text(prompt: str) -> str:
    """The prompt as a configuration keeps it: a built-in name, or the whole text, read if it is a path.

    Raises:
        ValueError: there is no such prompt and no such file, or its text cannot be kept or asks no question.
    """
    if is_path(prompt):
        prompt = _read(prompt)
    if "${" in prompt:
        raise ValueError("a prompt cannot hold '${', which configurations take for a reference")
    load_prompt(prompt)
    return prompt


def is_path(prompt: str) -> bool:
    """Whether the prompt is neither a built-in name nor a text."""
    return prompt not in prompt_names() and not _is_text(prompt)


def _is_text(prompt: str) -> bool:
    return any(each in prompt for each in _QUESTIONS) or "\n" in prompt


def _read(path: str) -> str:
    try:
        return Path(path).expanduser().read_text(encoding="utf-8-sig") + "\n"
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a ~ of nobody
        missing = isinstance(error, FileNotFoundError)
        why = "and there is no such file" if missing else f"and as a file: {error}"
        raise ValueError(f"no prompt is called {path!r} ({', '.join(prompt_names())}), {why}") from error


@lru_cache(maxsize=16)
def load_prompt(prompt: str) -> Prompt:
    """The parts of a built-in prompt, or of a text.

    Raises:
        ValueError: no prompt has that name, or its text lacks ``{question}``.
    """
    if prompt in prompt_names():
        text = _COMMENTS.sub("", (DIRECTORY / f"{prompt}.txt").read_text(encoding="utf-8"))
    elif _is_text(prompt):
        text = prompt
    else:
        raise ValueError(f"no prompt is called {prompt!r}; there are: {', '.join(prompt_names())}")
    system, *divided = _DIVIDER.split(text, maxsplit=1)
    template = divided[0] if divided else system
    if not any(each in template for each in _QUESTIONS):
        raise ValueError(f"the prompt {prompt[:60]!r} lacks {{question}}")
    said = {"": None, '""': ""}.get(system.strip(), system.strip())
    user = template.strip("\n").replace("{newline}", "\n")
    return Prompt(said if divided else None, user, bool(divided))


def asks_for_boxed(prompt: str) -> bool:
    """Whether the prompt wants the answer in ``\\boxed{}``."""
    loaded = load_prompt(prompt)
    return "\\boxed" in (loaded.system or "") + loaded.user


def build_prompt(prompt: str, question: str, tokens: TokenProtocol, **fields: str) -> list[int]:
    """The prompt's token ids for one question.

    `fields` fill further places, `{passages}` by `passages=...`; `{tools}` is what may be called. Tags and
    special tokens in what is filled in are neutralised.
    """
    loaded = load_prompt(prompt)
    texts = {name: tokens.clean(text) for name, text in {"question": question, **fields}.items()}
    asked = texts["question"].strip()
    texts["question?"] = asked if asked.endswith("?") else f"{asked}?"
    texts["tools"] = tokens.tools_text
    user = fill(loaded.user, texts)
    if not loaded.chat:
        return tokens.plain(user)
    return tokens.chat(None if loaded.system is None else fill(loaded.system, texts), user)


def fill(template: str, texts: Mapping[str, str]) -> str:
    """The template with each ``{name}`` that `texts` has.

    In one pass: a text that holds ``{question}`` itself stays as it is.
    """
    return _PLACE.sub(lambda found: texts.get(found[1], found[0]), template)
