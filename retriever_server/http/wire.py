"""Wire formats: what existing clients send and expect, and nothing else about them.

ReSearch asks /search and /batch_search; Search-R1, veRL 0.7 and SearchAgent-Zero ask /retrieve; SkyRL asks
/retrieve with one "query" instead of the list. All may add "exclude_ids", ids of passages they do not want (a
list for one query, a list of lists for a list of queries), and "return_contents": false, for documents with
only an "id". In every body null counts as absent and unknown keys are ignored. A blank query in a list gets
an empty list, so that the others are answered. Answers are put together from the corpus rows, which are JSON
already.
"""

import re
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from retriever_server.serving.service import Passages

MAX_TOP_K = 1000
MAX_QUERY_CHARS = 131_072  # questions of BRIGHT have 13,462; some evaluations repeat one several times
MAX_QUERIES = 1024
MAX_EXCLUDED = 10_000  # BRIGHT excludes some 5,000 for a query
MAX_ID_CHARS = 1024
MAX_PASSAGES = 65_536  # queries times passages in a request: some 50 MB of answer
# Consumes JSON escapes that belong together, so that half a surrogate pair is what matches alone, as group 1.
_ESCAPES = re.compile(
    rb"\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)


def well_formed_json(body: bytes) -> bytes:
    """JSON with U+FFFD for each half of a surrogate pair; a model sends one if it stops within an emoji."""
    return _ESCAPES.sub(lambda escape: rb"\ufffd" if escape[1] else escape[0], body)


def _not_blank(text: str) -> str:
    if not text.strip():
        raise PydanticCustomError("blank_query", "a query must not be blank")
    return text


def _id_text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise PydanticCustomError("id_type", "an id must be a string or an integer")
    return str(value)


_Text = Annotated[str, Field(max_length=MAX_QUERY_CHARS)]
_Query = Annotated[_Text, AfterValidator(_not_blank)]
_QueryList = Annotated[list[_Text], Field(max_length=MAX_QUERIES)]
_TopK = Annotated[int, Field(ge=1, le=MAX_TOP_K)]
_Id = Annotated[str, BeforeValidator(_id_text), Field(max_length=MAX_ID_CHARS)]
_Ids = Annotated[list[_Id], Field(max_length=MAX_EXCLUDED)]


class _Body(BaseModel):
    """What all bodies have in common; the validators run for the fields that a body declares."""

    model_config = ConfigDict(strict=True)
    return_contents: bool = True

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        return {key: value for key, value in body.items() if value is not None}

    @field_validator("top_n", "topk", check_fields=False)
    @classmethod
    def _bound_passages(cls, top_k: int, info: ValidationInfo) -> int:
        count = len(_query_list(info.data) or [])
        if count * top_k > MAX_PASSAGES:
            raise PydanticCustomError(
                "too_much",
                "{count} queries with {top_k} passages each are more than {most} passages per request",
                {"count": count, "top_k": top_k, "most": MAX_PASSAGES},
            )
        return top_k


class SearchBody(_Body):
    """POST /search."""

    query: _Query
    top_n: _TopK = 10
    return_score: bool = False
    exclude_ids: _Ids = []


class _ListBody(_Body):
    """A body with a list of excluded ids per query."""

    @field_validator("exclude_ids", check_fields=False)
    @classmethod
    def _match_queries(cls, ids: list[list[str]] | None, info: ValidationInfo) -> list[list[str]] | None:
        queries = _query_list(info.data)
        if ids is not None and queries is not None and len(ids) != len(queries):
            raise PydanticCustomError(
                "one_list_per_query",
                "{lists} lists of ids for {count} queries; there must be one per query",
                {"lists": len(ids), "count": len(queries)},
            )
        return ids


class BatchSearchBody(_ListBody):
    """POST /batch_search."""

    query: _QueryList
    top_n: _TopK = 10
    return_score: bool = False
    exclude_ids: list[_Ids] | None = None


class RetrieveBody(_ListBody):
    """POST /retrieve: a list of "queries", or one "query"."""

    queries: _QueryList | None = None
    query: _Query | None = Field(default=None, validate_default=True)
    topk: _TopK = 3
    return_scores: bool = False
    exclude_ids: list[_Ids] | None = None

    @model_validator(mode="before")
    @classmethod
    def _wrap_ids_of_one_query(cls, body: Any) -> Any:
        if not isinstance(body, dict) or body.get("query") is None:
            return body
        ids = body.get("exclude_ids")
        return body | {"exclude_ids": [ids]} if isinstance(ids, list) else body

    @field_validator("query")
    @classmethod
    def _require_one_of_both(cls, query: str | None, info: ValidationInfo) -> str | None:
        queries_are_valid = "queries" in info.data  # otherwise their own error is enough
        if queries_are_valid and (info.data["queries"] is None) == (query is None):
            raise PydanticCustomError("one_of_both", 'give either "queries", a list, or "query", one string')
        return query

    def query_list(self) -> list[str]:
        """The queries, whichever way they were sent."""
        return _query_list(self.__dict__) or []


def _query_list(fields: dict[str, Any]) -> list[str] | None:
    """The queries among the valid fields of a body; None if there are none."""
    query = fields.get("query")
    if isinstance(query, str):
        return [query]
    return fields.get("queries") if query is None else query


def id_sets(exclude_ids: list[list[str]] | None) -> list[frozenset[str]] | None:
    """The excluded ids, one set per query."""
    return None if exclude_ids is None else [frozenset(ids) for ids in exclude_ids]


def search_response(passages: Passages, return_score: bool) -> bytes:
    """`[document, ...]`, or with scores `[[document, ...], [score, ...]]`."""
    documents = _list(passages.lines)
    return _list([documents, _scores(passages)]) if return_score else documents


def batch_search_response(results: list[Passages], return_score: bool) -> bytes:
    """One list of documents per query, or with scores `[[documents, ...], [scores, ...]]`."""
    documents = _list([_list(passages.lines) for passages in results])
    return _list([documents, _list(list(map(_scores, results)))]) if return_score else documents


def retrieve_response(results: list[Passages], return_scores: bool) -> bytes:
    """`{"result": [one list per query]}` of documents, or with scores of `{"document", "score"}`."""
    entries = [_with_scores(passages) if return_scores else passages.lines for passages in results]
    return b'{"result": %b}' % _list(list(map(_list, entries)))


def explain(error: ValidationError) -> dict[str, str]:
    """The answer to a malformed body: `{"error": what is wrong where, "field": the first wrong one}`."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    fields = [".".join(map(str, problem["loc"])) or "body" for problem in problems]
    messages = [f"{field}: {problem['msg']}" for field, problem in zip(fields, problems, strict=True)]
    return {"error": "; ".join(messages[:5]), "field": fields[0]}


def _list(items: list[bytes]) -> bytes:
    return b"[%b]" % b", ".join(items)


def _scores(passages: Passages) -> bytes:
    return _list([b"%r" % score for score in passages.scores])


def _with_scores(passages: Passages) -> list[bytes]:
    pairs = zip(passages.lines, passages.scores, strict=True)
    return [b'{"document": %b, "score": %r}' % pair for pair in pairs]
