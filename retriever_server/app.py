"""Flask application: the routes, and every failure as JSON.

Routes:
    GET  /health         503 while the index loads, then its figures
    POST /search         one query          (ReSearch)
    POST /batch_search   a list of queries  (ReSearch)
    POST /retrieve       either             (Search-R1, veRL 0.7, SkyRL)
"""

from typing import TypeVar

from flask import Flask, Response, current_app, jsonify, request
from flask.json.provider import DefaultJSONProvider
from pydantic import BaseModel, ValidationError
from werkzeug.exceptions import HTTPException, ServiceUnavailable

from retriever_server import wire
from retriever_server.service import Searcher

MAX_BODY_BYTES = 8 * 1024 * 1024
Body = TypeVar("Body", bound=BaseModel)
Reply = tuple[Response, int]


def create_app(searcher: Searcher | None = None) -> Flask:
    """The application over `searcher`; without one it answers 503 until `set_searcher` is called."""
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    provider = DefaultJSONProvider(app)
    provider.sort_keys, provider.ensure_ascii, provider.compact = False, False, True
    app.json = provider
    app.extensions["searcher"] = searcher
    app.add_url_rule("/health", view_func=health, methods=["GET"])
    for view in (search, batch_search, retrieve):
        app.add_url_rule(f"/{view.__name__}", view_func=view, methods=["POST"])
    app.register_error_handler(ValidationError, malformed_body)
    app.register_error_handler(HTTPException, http_error)
    app.register_error_handler(Exception, internal_error)
    return app


def set_searcher(app: Flask, searcher: Searcher) -> None:
    """Begin to answer searches."""
    app.extensions["searcher"] = searcher


def health() -> Reply:
    """ReSearch's health answer with the figures of the index beside it."""
    searcher: Searcher | None = current_app.extensions["searcher"]
    if searcher is None:
        return jsonify(status="loading"), 503
    manifest = searcher.manifest
    figures = {
        "status": "healthy",
        "retrievers": {"total": 1, "available": 1},
        "count": manifest.count,
        "index": manifest.kind,
        "encoder": manifest.encoder,
        "dimension": manifest.dimension,
        "fingerprint": manifest.corpus.sha256,
    }
    return jsonify(figures), 200


def search() -> Reply:
    """ReSearch, one query."""
    body = _body(wire.SearchBody)
    [hits] = _searcher().search([body.query], body.top_n)
    return jsonify(wire.search_response(hits, body.return_score)), 200


def batch_search() -> Reply:
    """ReSearch, many queries."""
    body = _body(wire.BatchSearchBody)
    hits = _searcher().search(body.query, body.top_n)
    return jsonify(wire.batch_search_response(hits, body.return_score)), 200


def retrieve() -> Reply:
    """Search-R1 and SkyRL."""
    body = _body(wire.RetrieveBody)
    hits = _searcher().search(body.query_list(), body.topk)
    return jsonify(wire.retrieve_response(hits, body.return_scores)), 200


def malformed_body(error: ValidationError) -> Reply:
    """400 for what is not JSON, 422 for a wrong field, which the answer names."""
    not_json = error.errors()[0]["type"] == "json_invalid"
    return jsonify(wire.explain(error)), 400 if not_json else 422


def http_error(error: HTTPException) -> Reply:
    """Wrong path or method, too large a body, still loading."""
    return jsonify(error=error.description), error.code or 500


def internal_error(error: Exception) -> Reply:
    """Anything unforeseen: the log has the trace, the client has one line."""
    current_app.logger.error("%s %s failed", request.method, request.path, exc_info=error)
    return jsonify(error="internal error; the server's log says more"), 500


def _searcher() -> Searcher:
    searcher: Searcher | None = current_app.extensions["searcher"]
    if searcher is None:
        raise ServiceUnavailable("the index is still loading; try again in a while")
    return searcher


def _body(model: type[Body]) -> Body:
    # The content type is not looked at: some clients send JSON without saying so.
    return model.model_validate_json(request.get_data(cache=False))
