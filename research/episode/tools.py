"""Tools that a model may call in an episode, one function each.

Name, description and the check of its arguments are read from the function itself.
"""

import asyncio
import inspect
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic.errors import PydanticUserError

from research.episode.trajectory import Passage
from research.validation import first_fault

SEARCH = "search"
logger = logging.getLogger(__name__)


class ToolError(Exception):
    """A call that failed for good. Costs one turn of one trajectory; the model reads that it failed.

    `lasting`: every other call would fail too, since nothing, or another kind of server, listens there.
    """

    def __init__(self, message: str, lasting: bool = False) -> None:
        super().__init__(message)
        self.lasting = lasting


class SearchError(ToolError):
    """A search that failed for good, after the client's own retries."""


class CallFault(ValueError):
    """A call that cannot be carried out; the message is for the model."""


class UnreadableCall(CallFault):
    """A call from which not even the tool can be read; its message is shown unchanged."""


@dataclass(frozen=True)
class ToolResult:
    """What a call gives the model to read: passages, best first, or a text."""

    text: str = ""
    passages: tuple[Passage, ...] = ()


@dataclass(frozen=True)
class Tool:
    """A function that a model may call.

    Attributes:
        name: what the model calls it; with tags, the name of the tag.
        description: what it does, for the model.
        arguments: a pydantic model of its parameters.
        function: sync or async, called by keyword; gives a text, passages, or a ToolResult.
        close: ends what the function holds open, such as connections.
        guarded: whether an error that is no ToolError costs the one call alone, as arguments of the model's
            may cause any; it is logged once, with all that helps to mend it.
        searches: whether it finds passages for its parameter ``query``: what controls take away, and what is
            counted as a search.
    """

    name: str
    description: str
    arguments: type[BaseModel]
    function: Callable[..., Any]
    guarded: bool = True
    close: Callable[[], Awaitable[None]] | None = None
    searches: bool = False

    @property
    def schema(self) -> dict[str, Any]:
        """The tool as chat templates and OpenAI's API take it."""
        parameters = {**self.arguments.model_json_schema()}
        parameters.pop("title", None)
        described = {"name": self.name, "description": self.description, "parameters": parameters}
        return {"type": "function", "function": described}

    def checked(self, given: Any) -> dict[str, Any]:
        """The arguments as the function takes them. Raises CallFault."""
        try:
            model = self.arguments.model_validate(given)
        except ValidationError as error:
            raise CallFault(f"{self.name}: {first_fault(error)}") from None
        return {name: getattr(model, name) for name in type(model).model_fields}

    def of_text(self, text: str) -> dict[str, Any]:
        """The arguments from the text between the tool's tags: its only text, or a JSON object.

        Raises:
            CallFault: the text holds no valid arguments.
        """
        (name, field), *others = self.arguments.model_fields.items()
        if not others and field.annotation is str:
            return self.checked({name: text})
        try:
            return self.checked(json.loads(text))
        except (ValueError, RecursionError) as error:
            if isinstance(error, CallFault):
                raise
            raise CallFault(f"{self.name}: the arguments must be a JSON object") from None

    async def __call__(self, arguments: Mapping[str, Any], seconds: float | None = None) -> ToolResult:
        """Raises ToolError, also on a time-out, and, unless guarded, whatever else the function raises."""
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                return await self._result(arguments)
        except ToolError:
            raise
        except Exception as error:
            if limit.expired():
                fault = ToolError(f"no answer within {seconds:g} s")
                _warn_once(self.name, fault)
                raise fault from error
            if not self.guarded:
                raise
            _warn_once(self.name, error)
            raise ToolError(f"{type(error).__name__}: {error}") from error

    async def _result(self, arguments: Mapping[str, Any]) -> ToolResult:
        if inspect.iscoroutinefunction(_unwrapped(self.function)):
            value = await self.function(**arguments)
        else:  # may take its time: other episodes go on meanwhile
            value = await asyncio.to_thread(self.function, **arguments)
            value = await value if isinstance(value, Awaitable) else value
        return _result(self.name, value)


_warned: set[str] = set()


def _warn_once(name: str, error: Exception) -> None:
    if name not in _warned:
        _warned.add(name)
        logger.warning("the tool %s failed; each time, the model reads that it did", name, exc_info=error)


def make_tool(function: Callable[..., Any], name: str | None = None, **bound: Any) -> Tool:
    """The tool made of a function, or of another callable.

    Args:
        function: each of its parameters needs a type that JSON can express; its docstring is the description.
        name: what the model calls it; by default the function's name.
        bound: parameters that the user sets and the model does not see.

    Raises:
        ValueError: it has no description or no parameter, or one whose type JSON cannot express.
    """
    called = function if inspect.isroutine(function) else type(function).__call__
    name = str(name or getattr(function, "__name__", type(function).__name__))
    try:
        if not name.isidentifier():
            raise ValueError("its name can be no tag: only letters, digits and _")
        signature = inspect.signature(function, eval_str=True)
        given = {key: each for key, each in signature.parameters.items() if key not in bound}
        if unknown := bound.keys() - signature.parameters.keys():
            raise ValueError(f"it has no parameter {', '.join(sorted(unknown))}")
        model = create_model(f"{name}_arguments", __config__=ConfigDict(extra="forbid"), **_fields(given))
        model.model_json_schema()
    except (ValueError, TypeError, NameError, PydanticUserError) as error:
        raise ValueError(f"the tool {name}: {' '.join(str(error).split())}") from error
    description = inspect.cleandoc(function.__doc__ or called.__doc__ or "")
    if not description:
        raise ValueError(f"the tool {name} has no docstring, which tells the model what it does")
    return Tool(name, description, model, partial(function, **bound) if bound else function)


def _fields(parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    if not parameters:
        raise ValueError("it has no parameter that the model could give")
    fields = {}
    for name, parameter in parameters.items():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ValueError(f"its parameter {name} cannot be given by keyword")
        if parameter.annotation is parameter.empty:
            raise ValueError(f"its parameter {name} has no type")
        fields[name] = (
            parameter.annotation,
            ... if parameter.default is parameter.empty else parameter.default,
        )
    return fields


def _unwrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    while isinstance(function, partial):
        function = function.func
    return function if inspect.isroutine(function) else type(function).__call__


def _result(name: str, value: Any) -> ToolResult:
    if isinstance(value, ToolResult):
        return value
    if isinstance(value, str | int | float):
        return ToolResult(str(value))
    if isinstance(value, Sequence) and all(isinstance(each, Passage) for each in value):
        return ToolResult(passages=tuple(value))
    raise TypeError(f"the tool {name} gave {type(value).__name__}, not a text, passages or a ToolResult")


SearchFunction = Callable[..., Awaitable[list[Passage]]]
"""query, and where a tool lets the model say it, how many -> passages, best first. Raises SearchError."""


def search_tool(search: SearchFunction) -> Tool:
    """The tool ``search`` around a search function."""

    async def function(query: str) -> list[Passage]:
        """Search for passages that help to answer; the query is a plain text."""
        return await search(query)

    description, close = inspect.cleandoc(function.__doc__ or ""), getattr(search, "close", None)
    return Tool(SEARCH, description, _Query, function, guarded=False, close=close, searches=True)


class _Query(BaseModel):
    model_config = ConfigDict(extra="forbid")
    query: str
