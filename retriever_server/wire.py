"""Wire formats: what clients in the wild send and expect, and nothing else about them.

ReSearch asks /search and /batch_search; Search-R1, veRL 0.7 and SearchAgent-Zero ask /retrieve; SkyRL asks
/retrieve with one "query" in place of the list. In every body null counts as absent, and unknown keys are
passed over.
"""

from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from retriever_server.service import Hit

MAX_TOP_K = 1000
MAX_QUERY_CHARS = 8192
MAX_QUERIES = 1024


def _not_blank(text: str) -> str:
    if not text.strip():
        raise PydanticCustomError("blank_query", "a query must not be blank")
    return text


Query = Annotated[str, Field(max_length=MAX_QUERY_CHARS), AfterValidator(_not_blank)]
Queries = Annotated[list[Query], Field(max_length=MAX_QUERIES)]
TopK = Annotated[int, Field(ge=1, le=MAX_TOP_K)]


class _Body(BaseModel):
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


class BatchSearchBody(_Body):
    """POST /batch_search."""

    query: Queries
    top_n: TopK = 10
    return_score: bool = False


class RetrieveBody(_Body):
    """POST /retrieve: a list of "queries", or one "query"."""

    queries: Queries | None = None
    query: Query | None = Field(default=None, validate_default=True)
    topk: TopK = 3
    return_scores: bool = False

    @field_validator("query")
    @classmethod
    def _one_of_both(cls, query: str | None, info: ValidationInfo) -> str | None:
        queries_are_right = "queries" in info.data  # else their own error is enough
        if queries_are_right and (info.data["queries"] is None) == (query is None):
            raise PydanticCustomError("one_of_both", 'give either "queries", a list, or "query", one string')
        return query

    def query_list(self) -> list[str]:
        """The queries, however they were sent."""
        return self.queries if self.query is None else [self.query]  # type: ignore[return-value]


def search_response(hits: list[Hit], return_score: bool) -> list:
    """`[document, ...]`, or with scores `[[document, ...], [score, ...]]`."""
    return [_documents(hits), _scores(hits)] if return_score else _documents(hits)


def batch_search_response(hits: list[list[Hit]], return_score: bool) -> list:
    """One list of documents a query, or with scores `[[documents, ...], [scores, ...]]`."""
    documents = [_documents(found) for found in hits]
    return [documents, [_scores(found) for found in hits]] if return_score else documents


def retrieve_response(hits: list[list[Hit]], return_scores: bool) -> dict[str, list]:
    """`{"result": [one list a query]}` of documents, or with scores of `{"document", "score"}`."""
    if not return_scores:
        return {"result": [_documents(found) for found in hits]}
    return {"result": [[{"document": _document(hit), "score": hit.score} for hit in found] for found in hits]}


def explain(error: ValidationError) -> dict[str, str]:
    """The answer to a malformed body: `{"error": what is wrong where, "field": the first wrong one}`."""
    fields = [".".join(map(str, problem["loc"])) or "body" for problem in error.errors()]
    messages = [f"{field}: {problem['msg']}" for field, problem in zip(fields, error.errors(), strict=True)]
    return {"error": "; ".join(messages[:5]), "field": fields[0]}


def _document(hit: Hit) -> dict[str, str]:
    return {"id": hit.id, "contents": hit.contents}


def _documents(hits: list[Hit]) -> list[dict[str, str]]:
    return [_document(hit) for hit in hits]


def _scores(hits: list[Hit]) -> list[float]:
    return [hit.score for hit in hits]
