"""Call codecs: how a model writes that it calls a tool, by tags or as JSON.

``tags``: each tool has a tag, ``<search>who wrote Hamlet</search>``, around its only text argument or around
a JSON object of its arguments. ``json``: one tag holds every call,
``<tool_call>{"name": "search", "arguments": {"query": "who wrote Hamlet"}}</tool_call>``, the form in which
Qwen2.5 and others were taught to call; the chat template tells the model which tools there are.
"""

import json
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from research.episode.protocol import Protocol, closing, first_pair, opening, parse_call
from research.episode.tools import SEARCH, CallFault, Tool, UnreadableCall

# What one of the model's turns asks for.
CALLED, ANSWERED, ENDED, INVALID = "called", "answered", "ended", "invalid"
NO_CALL = "There was no query between the search tags."
NO_PYTHON = "invalid syntax (<call>, line 1)"  # as Python says it of a call


@dataclass(frozen=True)
class CallRequest:
    """A call that can be carried out, and how it is recorded."""

    tool: Tool
    arguments: Mapping[str, Any]

    @property
    def text(self) -> str:
        """A search's query; for other tools, the arguments as JSON."""
        if self.tool.name == SEARCH and isinstance(query := self.arguments.get("query"), str):
            return query
        return json.dumps(self.arguments, ensure_ascii=False, default=str)


def next_step(turn: str, tag: str | None, protocol: Protocol, ended: bool) -> str:
    """What a turn that ended at a closing tag, or None, asks for: CALLED, ANSWERED, ENDED or INVALID.

    Without ``invalid_turn`` the closing tag alone decides. With ``stop: end`` a turn that the model has not
    `ended` calls nothing.
    """
    if protocol.stop == "end":
        return CALLED if ended and written_calls(turn, protocol) else ENDED
    if not protocol.invalid_turn:
        return ENDED if tag is None else ANSWERED if tag == closing(protocol.answer) else CALLED
    pair = first_pair(turn, protocol)
    if pair is None:
        return INVALID
    return ANSWERED if pair[0] == protocol.answer else CALLED


def written_calls(turn: str, protocol: Protocol) -> list[tuple[str, str]]:
    """The tag and the text of each call that a turn makes; none if it closes no call.

    A turn that ends at a call makes that one; where only the model ends its turns (``stop: end``), it makes
    all that it wrote, if as many tags open as close, each before it closes.
    """
    if protocol.stop != "end":
        call = parse_call(turn, protocol)
        return [call] if call else []
    if not all(_is_paired(turn, tag) for tag in protocol.call_tags):
        return []
    names = "|".join(map(re.escape, protocol.call_tags))
    return [(each[1], each[2].strip()) for each in re.finditer(rf"<({names})>(.*?)</\1>", turn, re.DOTALL)]


def _is_paired(turn: str, tag: str) -> bool:
    opened, closed = (
        [each.start() for each in re.finditer(write(tag), turn)] for write in (opening, closing)
    )
    return len(opened) == len(closed) and all(map(int.__lt__, opened, closed))


def read_call(written: tuple[str, str] | None, tools: Sequence[Tool], protocol: Protocol) -> CallRequest:
    """What a call asks for; None stands for a turn that closes a call it never opened.

    Raises:
        CallFault: there is no call, it names no tool, or its arguments do not fit the tool.
    """
    name, content = written or ("", "")
    by_name = {protocol.tag_of(tool.name): tool for tool in tools}
    if protocol.calls == "json":
        of_json = _of_json if protocol.faults == "own" else partial(_of_python, faults=protocol.faults)
        return of_json(content, {tool.name: tool for tool in tools})
    if content:
        _check_known(name, by_name)  # the tag of search ends a turn even without such a tool
        return CallRequest(by_name[name], by_name[name].of_text(content))
    if name not in ("", protocol.search):
        raise CallFault(f"There was nothing between the {name} tags.")
    if protocol.empty_query == "search" and protocol.search in by_name:
        return CallRequest(by_name[protocol.search], {"query": ""})
    raise CallFault(NO_CALL if protocol.empty_query in ("notice", "search") else protocol.empty_query)


def _of_json(content: str, tools: Mapping[str, Tool]) -> CallRequest:
    try:
        call = json.loads(content)
        name, arguments = call["name"], call.get("arguments") or {}
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        raise CallFault('A call must be a JSON object {"name": ..., "arguments": {...}}.') from None
    _check_known(name, tools)
    return CallRequest(tools[name], tools[name].checked(arguments))


def _check_known(name: object, tools: Mapping[str, Tool]) -> None:
    if not isinstance(name, str) or name not in tools:
        raise CallFault(f"There is no tool {reprlib.repr(name)}; there are: {', '.join(tools)}.")


def _of_python(content: str, tools: Mapping[str, Tool], faults: str) -> CallRequest:
    """As `_of_json`, but calls and error messages are Python's, ``name(key=value)``."""
    try:
        call = json.loads(content)
        name, arguments = call["name"], call.get("arguments", {})
        given = dict(arguments.items())
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
        if faults == "executed":
            raise CallFault(NO_PYTHON) from None
        raise UnreadableCall(f"Parse tool call failed: {error}") from None
    if not isinstance(name, str) or name not in tools:
        known = isinstance(name, str) and name.isidentifier()
        raise CallFault(f"name {name!r} is not defined" if known else NO_PYTHON)
    if fault := _signature_fault(tools[name], given):
        raise CallFault(f"{name}() {fault}")
    return CallRequest(tools[name], tools[name].checked(given))


def _signature_fault(tool: Tool, given: Mapping[str, Any]) -> str:
    fields = tool.arguments.model_fields
    if unknown := [name for name in given if name not in fields]:
        return f"got an unexpected keyword argument {unknown[0]!r}"
    missing = [repr(name) for name, field in fields.items() if field.is_required() and name not in given]
    words = f"missing {len(missing)} required positional argument{'s' * (len(missing) > 1)}"
    return f"{words}: {' and '.join(missing)}" if missing else ""
