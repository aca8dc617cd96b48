"""Turns token ids into the messages of chat completions, for servers that offer nothing else.

Such a server applies the chat template. Ours only marks where each message begins, with tokens added to the
tokenizer: what follows the last mark is the assistant's turn so far, which the server has to continue.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATE = (
    "{% for message in messages %}<|message:{{ message.role }}|>{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|message:assistant|>{% endif %}"
)
_MARK = re.compile(r"<\|message:(system|user|assistant)\|>")
GO_ON = "Go on exactly where your message ends."
# How a turn is continued, the best first, and what the warning says about it.
WAYS = {
    "continue_final_message": "turns are continued by continue_final_message",
    "prefix": "turns are continued after a final assistant message, if the server does so",
    "request": "it takes no final assistant message, so turns are continued at a user's request",
}


def mark_messages(tokenizer: "PreTrainedTokenizerBase", options: Mapping[str, Any]) -> None:
    """Make the tokenizer render chats with our marks, each a single token.

    `options` are those of the chat template, which go to the server: a comment says that they are known.
    """
    marks = [f"<|message:{role}|>" for role in ("system", "user", "assistant")]
    tokenizer.add_tokens([AddedToken(mark, normalized=False) for mark in marks], special_tokens=True)
    tokenizer.chat_template = f"{TEMPLATE}{{# {' '.join(options)} #}}"


def chat_body(text: str, way: str) -> dict[str, Any]:
    """`messages` and further keys of a way of WAYS for a marked text; one without marks is the user's."""
    before, *parts = _MARK.split(text)
    if not parts:
        return {"messages": [{"role": "user", "content": text}]}
    pairs = zip(parts[::2], parts[1::2], strict=True)
    messages = [{"role": role, "content": content} for role, content in pairs if content]
    if messages[-1]["role"] != "assistant":
        return {"messages": messages}
    if way == "request":
        return {"messages": [*messages, {"role": "user", "content": GO_ON}]}
    extra = {"continue_final_message": True, "add_generation_prompt": False}
    return {"messages": messages} | (extra if way == "continue_final_message" else {})


def chat_choice(choice: dict[str, Any]) -> dict[str, Any]:
    """A choice of chat completions in the form of completions; without content it is empty."""
    content = choice["message"].get("content")
    return {"text": "" if content is None else content, "finish_reason": choice.get("finish_reason")}


def unmarked(text: str) -> str:
    """The text without marks: a model must not begin a message."""
    return _MARK.sub("", text)
