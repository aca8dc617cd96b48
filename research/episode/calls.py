"""Call codecs: how a model writes that it calls a tool, by tags or as JSON.

``tags``: each tool has a tag, ``<search>who wrote Hamlet</search>``, around its only text argument or around
a JSON object of its arguments. ``json``: one tag holds every call,
``<tool_call>{"name": "search", "arguments": {"query": "who wrote Hamlet"}}</tool_call>``, the form in which
Qwen2.5 and others were taught to call; the chat template tells the model which tools there are.
"""

import json
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from research.episode.protocol import Protocol, parse_call
from research.episode.tools import SEARCH, CallFault, Tool

NO_CALL = "There was no query between the search tags."


@dataclass(frozen=True)
class CallRequest:
    """A call that can be carried out, and how it is recorded."""

    tool: Tool
    arguments: Mapping[str, Any]

    @property
    def text(self) -> str:
        """A search's query; of other tools the arguments as JSON."""
        if self.tool.name == SEARCH and isinstance(query := self.arguments.get("query"), str):
            return query
        return json.dumps(self.arguments, ensure_ascii=False, default=str)


def read_call(turn: str, tools: Sequence[Tool], protocol: Protocol) -> CallRequest:
    """The call that a turn ends in.

    Raises:
        CallFault: there is none, of no tool, or with arguments that the tool does not take.
    """
    name, content = parse_call(turn, protocol) or ("", "")
    by_name = {protocol.tag_of(tool.name): tool for tool in tools}
    if protocol.calls == "json":
        return _of_json(content, {tool.name: tool for tool in tools})
    if not content:
        raise CallFault(
            NO_CALL if name in ("", protocol.search) else f"There was nothing between the {name} tags."
        )
    return CallRequest(by_name[name], by_name[name].of_text(content))


def _of_json(content: str, tools: Mapping[str, Tool]) -> CallRequest:
    try:
        call = json.loads(content)
        name, arguments = call["name"], call.get("arguments") or {}
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        raise CallFault('A call must be a JSON object {"name": ..., "arguments": {...}}.') from None
    if not isinstance(name, str) or name not in tools:
        raise CallFault(f"There is no tool {reprlib.repr(name)}; there are: {', '.join(tools)}.")
    return CallRequest(tools[name], tools[name].checked(arguments))
