"""Options of the index kinds: what can be set, in which range, and how `--index-option key=value` is read."""

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from retriever_server.errors import RetrieverError


class IndexOptions(BaseModel):
    """Options of a kind without options. `at_serving` names those that may change after the build."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    at_serving: ClassVar[frozenset[str]] = frozenset()


class HnswOptions(IndexOptions):
    """A graph of near passages. Defaults: measured, see docs/retriever.md."""

    at_serving = frozenset({"efSearch"})
    M: int = Field(32, ge=4, le=128, description="links per passage")
    efConstruction: int = Field(100, ge=8, le=2000, description="candidates considered for each link")
    efSearch: int = Field(128, ge=1, le=10_000, description="candidates considered for a query")
    storage: Literal["fp16", "flat", "sq8"] = Field("fp16", description="numbers of 2, 4 or 1 bytes")


class IvfPqOptions(IndexOptions):
    """Short codes in lists of near passages. Defaults: measured, see docs/retriever.md."""

    at_serving = frozenset({"nprobe", "candidates"})
    nlist: int = Field(0, ge=0, le=1 << 20, description="lists; 0: 4 sqrt(passages), a power of 2")
    M: int = Field(0, ge=0, le=4096, description="4-bit codes per passage; 0: one for each 2 numbers")
    refine: Literal["SQ8", "SQ6", "SQ4", "SQfp16"] = Field("SQ8", description="the form scored last")
    nprobe: int = Field(128, ge=1, le=1 << 20, description="lists searched for a query")
    candidates: int = Field(100, ge=1, le=100_000, description="of them scored with the refined form")


class Bm25Options(IndexOptions):
    """BM25's two parameters. The defaults are Anserini's and BRIGHT's."""

    k1: float = Field(
        0.9, ge=0, allow_inf_nan=False, description="how soon repeating a word counts no more; 0: at once"
    )
    b: float = Field(0.4, ge=0, le=1, description="how much long passages are penalised")


class HybridOptions(Bm25Options):
    """The two kinds, with BM25's parameters for the lexical one."""

    at_serving = frozenset({"depth"})
    dense: Literal["flat", "flat_fp16", "sq8", "hnsw", "ivfpq"] = Field(
        "flat", description="dense kind, with its default options"
    )
    lexical: Literal["bm25", "bm25_query_weighted"] = Field("bm25", description="lexical kind")
    # 1000: as long as the longest answer of the service.
    depth: int = Field(1000, ge=1, description="passages of each list that are joined")


OPTIONS: dict[str, type[IndexOptions]] = {
    "hnsw": HnswOptions,
    "ivfpq": IvfPqOptions,
    "bm25": Bm25Options,
    "bm25_query_weighted": Bm25Options,
    "hybrid": HybridOptions,
}
"""Name of a kind -> its options; other kinds have none."""


def options_of(kind: str) -> type[IndexOptions]:
    """The class of the kind's options."""
    return OPTIONS.get(kind, IndexOptions)


def parse_options(kind: str, arguments: Iterable[str]) -> dict[str, Any]:
    """The options among `arguments`, each key=value: validated, without defaults.

    Raises RetrieverError for an argument of another form, an unknown key, or a value out of range.
    """
    given = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            raise RetrieverError(f'--index-option "{argument}" is not of the form key=value')
        given[key] = value
    try:
        return options_of(kind).model_validate(given).model_dump(exclude_unset=True)
    except ValidationError as error:
        problem = error.errors()[0]
        key = str(problem["loc"][0])
        if problem["type"] == "extra_forbidden":
            known = ", ".join(options_of(kind).model_fields) or "none"
            raise RetrieverError(f'the index kind "{kind}" has no option "{key}"; it has: {known}') from error
        raise RetrieverError(f"--index-option {key}={given[key]}: {problem['msg']}") from error


def require_serving(kind: str, given: Iterable[str], why: str) -> None:
    """Raise RetrieverError with the reason `why` if any of the options `given` can only be set by a build."""
    if fixed := [key for key in given if key not in options_of(kind).at_serving]:
        raise RetrieverError(f"--index-option {fixed[0]}: {why}")


def option_help() -> str:
    """All options with their defaults, for `--help`; those marked with * can also be given when serving."""
    lines = ["\b", "Options of the index kinds (--index-option KEY=VALUE; * also when serving):"]
    for kind, options in OPTIONS.items():
        for key, field in options.model_fields.items():
            star = "*" if key in options.at_serving else " "
            lines.append(f"  {kind:6} {star}{key}={field.default}: {field.description}")
    return "\n".join(lines)
