"""Wire formats: what clients in the wild send and expect, and nothing else about them.

ReSearch asks /search and /batch_search; Search-R1, veRL 0.7 and SearchAgent-Zero ask /retrieve; SkyRL asks
/retrieve with one "query" in place of the list. All may add "exclude_ids": ids of passages that are not
wanted, a list for one query, a list of lists for a list of queries; and "return_contents": false, for
documents of an "id" alone. In every body null counts as absent, and unknown keys are passed over. Of a list
of queries a blank one gets an empty list, so that the others get their answers. Answers are put together from
the corpus rows, which are JSON already.
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
MAX_PASSAGES = 65_536
"""queries times passages of a request: some 50 MB of answer"""
# Escapes in JSON that belong together, so that what is left of a pair of surrogates stands alone, group 1.
_ESCAPES = re.compile(
    rb"\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)


def well_formed_json(body: bytes) -> bytes:
    """JSON with U+FFFD for each half of a surrogate pair, as a model that stops within an emoji sends it."""
    return _ESCAPES.sub(lambda found: rb"\ufffd" if found[1] else found[0], body)


def _not_blank(text: str) -> str:
    if not text.strip():
        raise PydanticCustomError("blank_query", "a query must not be blank")
    return text


def _id_text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise PydanticCustomError("id_type", "an id must be a string or an integer")
    return str(value)


Text = Annotated[str, Field(max_length=MAX_QUERY_CHARS)]
Query = Annotated[Text, AfterValidator(_not_blank)]
Queries = Annotated[list[Text], Field(max_length=MAX_QUERIES)]  # a blank one finds nothing
TopK = Annotated[int, Field(ge=1, le=MAX_TOP_K)]
Id = Annotated[str, BeforeValidator(_id_text), Field(max_length=MAX_ID_CHARS)]
Ids = Annotated[list[Id], Field(max_length=MAX_EXCLUDED)]


class _Body(BaseModel):
    """What all bodies have in common."""

    model_config = ConfigDict(strict=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        return {key: value for key, value in body.items() if value is not None}


class SearchBody(_Body):
    """POST /search."""

    query: Query
    top_n: TopK = 10
    return_score: bool = False
    return_contents: bool = True
    exclude_ids: Ids = []


class BatchSearchBody(_Body):
    """POST /batch_search."""

    query: Queries
    top_n: TopK = 10
    return_score: bool = False
    return_contents: bool = True
    exclude_ids: list[Ids] | None = Field(default=None, validate_default=True)

    @field_validator("top_n")
    @classmethod
    def _not_too_much(cls, top_n: int, info: ValidationInfo) -> int:
        return _bounded(top_n, info.data.get("query"))

    @field_validator("exclude_ids")
    @classmethod
    def _one_list_a_query(cls, ids: list[list[str]] | None, info: ValidationInfo) -> list[list[str]] | None:
        return _one_a_query(ids, info.data.get("query"))


class RetrieveBody(_Body):
    """POST /retrieve: a list of "queries", or one "query"."""

    queries: Queries | None = None
    query: Query | None = Field(default=None, validate_default=True)
    topk: TopK = 3
    return_scores: bool = False
    return_contents: bool = True
    exclude_ids: list[Ids] | None = None

    @model_validator(mode="before")
    @classmethod
    def _wrap_ids_of_one_query(cls, body: Any) -> Any:
        one_query = isinstance(body, dict) and body.get("query") is not None
        if not one_query or not isinstance(body.get("exclude_ids"), list):
            return body
        return body | {"exclude_ids": [body["exclude_ids"]]}

    @field_validator("query")
    @classmethod
    def _one_of_both(cls, query: str | None, info: ValidationInfo) -> str | None:
        queries_are_right = "queries" in info.data  # else their own error is enough
        if queries_are_right and (info.data["queries"] is None) == (query is None):
            raise PydanticCustomError("one_of_both", 'give either "queries", a list, or "query", one string')
        return query

    @field_validator("topk")
    @classmethod
    def _not_too_much(cls, topk: int, info: ValidationInfo) -> int:
        return _bounded(topk, info.data.get("queries"))

    @field_validator("exclude_ids")
    @classmethod
    def _one_list_a_query(cls, ids: list[list[str]] | None, info: ValidationInfo) -> list[list[str]] | None:
        one = "query" in info.data and info.data["query"] is not None
        return _one_a_query(ids, [info.data["query"]] if one else info.data.get("queries"))

    def query_list(self) -> list[str]:
        """The queries, however they were sent."""
        return self.queries if self.query is None else [self.query]  # type: ignore[return-value]


def _bounded(top_k: int, queries: list[str] | None) -> int:
    if queries and len(queries) * top_k > MAX_PASSAGES:
        raise PydanticCustomError(
            "too_much",
            "{count} queries with {top_k} passages each are more than {most} passages a request",
            {"count": len(queries), "top_k": top_k, "most": MAX_PASSAGES},
        )
    return top_k


def _one_a_query(ids: list[list[str]] | None, queries: list | None) -> list[list[str]] | None:
    if ids is not None and queries is not None and len(ids) != len(queries):
        raise PydanticCustomError(
            "one_list_a_query",
            "{lists} lists of ids for {count} queries; there must be one a query",
            {"lists": len(ids), "count": len(queries)},
        )
    return ids


def search_response(found: Passages, return_score: bool) -> bytes:
    """`[document, ...]`, or with scores `[[document, ...], [score, ...]]`."""
    return _list([_list(found.lines), _scores(found)]) if return_score else _list(found.lines)


def batch_search_response(found: list[Passages], return_score: bool) -> bytes:
    """One list of documents a query, or with scores `[[documents, ...], [scores, ...]]`."""
    documents = _list([_list(of_query.lines) for of_query in found])
    return _list([documents, _list([_scores(of_query) for of_query in found])]) if return_score else documents


def retrieve_response(found: list[Passages], return_scores: bool) -> bytes:
    """`{"result": [one list a query]}` of documents, or with scores of `{"document", "score"}`."""
    return b'{"result": %b}' % _list(
        [_list(_with_scores(of_query) if return_scores else of_query.lines) for of_query in found]
    )


def explain(error: ValidationError) -> dict[str, str]:
    """The answer to a malformed body: `{"error": what is wrong where, "field": the first wrong one}`."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    fields = [".".join(map(str, problem["loc"])) or "body" for problem in problems]
    messages = [f"{field}: {problem['msg']}" for field, problem in zip(fields, problems, strict=True)]
    return {"error": "; ".join(messages[:5]), "field": fields[0]}


def _list(items: list[bytes]) -> bytes:
    return b"[%b]" % b", ".join(items)


def _scores(found: Passages) -> bytes:
    return _list([b"%r" % score for score in found.scores])


def _with_scores(found: Passages) -> list[bytes]:
    pairs = zip(found.lines, found.scores, strict=True)
    return [b'{"document": %b, "score": %r}' % pair for pair in pairs]


def id_sets(exclude_ids: list[list[str]] | None) -> list[frozenset[str]] | None:
    """The excluded ids, one set a query."""
    return None if exclude_ids is None else [frozenset(ids) for ids in exclude_ids]
