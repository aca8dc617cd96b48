"""Prompts by name, one text file each: ``research_base``, ``research_instruct``, ``search_r1``, ``question``.

With a line ``---`` the part above it is the system message (it may be empty) and the part below it the user
message, both put through the model's own chat template. Without such a line the text goes in as it stands,
for base models. Lines that start with ``#`` at the top are comments.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from research.token_protocol import TokenProtocol

DIRECTORY = Path(__file__).parent
_PLACE = re.compile(r"\{([a-z]+)\}")


def prompt_names() -> list[str]:
    """The names that :func:`load_prompt` knows, sorted."""
    return sorted(path.stem for path in DIRECTORY.glob("*.txt"))


@lru_cache(maxsize=16)
def load_prompt(name: str) -> tuple[str | None, str]:
    """(system message, user template) of a chat prompt; (None, text template) of a prompt that goes in as it
    stands.

    Raises:
        ValueError: no prompt has that name, or its text lacks ``{question}``.
    """
    if name not in prompt_names():
        raise ValueError(f"no prompt is called {name!r}; there are: {', '.join(prompt_names())}")
    lines = (DIRECTORY / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    while lines and lines[0].startswith("#"):
        lines.pop(0)
    system, divider, user = "\n".join(lines).partition("\n---\n")
    template = user if divider else system
    if "{question}" not in template:
        raise ValueError(f"prompt {name!r} lacks {{question}}")
    return (system.strip() if divider else None), template.strip("\n")


def asks_for_boxed(name: str) -> bool:
    """Whether the prompt wants the answer in ``\\boxed{}``."""
    return "\\boxed" in "".join(part for part in load_prompt(name) if part)


def build_prompt(name: str, question: str, tokens: "TokenProtocol", **fields: str) -> list[int]:
    """The prompt's token ids for one question; `fields` fill further places, `{passages}` by `passages=...`.
    Tags and special tokens in what is filled in are neutralised.
    """
    system, template = load_prompt(name)
    texts = {name: tokens.clean(text) for name, text in {"question": question, **fields}.items()}
    user = fill(template, texts)
    return tokens.plain(user) if system is None else tokens.chat(fill(system, texts), user)


def fill(template: str, texts: Mapping[str, str]) -> str:
    """The template with each ``{name}`` that `texts` has. In one pass: a text that holds ``{question}``
    itself stays as it is.
    """
    return _PLACE.sub(lambda found: texts.get(found[1], found[0]), template)
