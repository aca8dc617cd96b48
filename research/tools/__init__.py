"""What a policy may call, named in ``research.tools``: built in, one file each, or a function of your own.

A tool is a function with types and a docstring, which tell the model how to call it; it gives a text,
passages or a ToolResult. A class is made once, with the parameters of the configuration, and then called; a
function that returns a Tool is called for it.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from research.doors import Door
from research.episode.tools import Tool, make_tool
from research.tools.search import RetrieverConfig

DOOR = Door("tool", "research.tools", "tool")


def read_tools(given: str | Sequence[str] | Mapping[str, Any], retriever: RetrieverConfig) -> list[Tool]:
    """The tools of ``name``, ``[name, ...]`` or ``{name: {parameter: value}}``.

    A function or class that has a parameter `retriever` is given the retriever's configuration.

    Raises:
        ValueError: there is no such tool, it is no function that a model can call, or two have one name.
    """
    names = [given] if isinstance(given, str) else list(given)
    parameters = given if isinstance(given, Mapping) else {}
    tools = [_tool(str(name), dict(parameters.get(name) or {}), retriever) for name in names]
    if len({tool.name for tool in tools}) < len(tools):
        raise ValueError(f"research.tools: two tools have one name: {', '.join(tool.name for tool in tools)}")
    return tools


def _tool(name: str, parameters: dict[str, Any], retriever: RetrieverConfig) -> Tool:
    thing = DOOR.load(name)
    try:
        signature = inspect.signature(thing, eval_str=True)
        if "retriever" in signature.parameters:
            parameters["retriever"] = retriever
        if signature.return_annotation is Tool:
            made: Tool = thing(**parameters)
            return made
        return make_tool(thing(**parameters)) if isinstance(thing, type) else make_tool(thing, **parameters)
    except (TypeError, NameError) as error:
        raise ValueError(f"research.tools: {name}: {error}") from error
