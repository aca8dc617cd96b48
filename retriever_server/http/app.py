"""Flask application: the routes, and every failure as JSON.

Routes:
    GET  /               a page for people
    GET  /health         503 with the current stage while the index loads, then figures of the index
    GET  /metrics        Prometheus' text format
    POST /search         one query          (ReSearch)
    POST /batch_search   a list of queries  (ReSearch)
    POST /retrieve       either             (Search-R1, veRL 0.7, SkyRL)
    POST /reload         switch to the index now in the directory (serve --reload, with a token)
"""

import hmac
import math
import time
from importlib.resources import files
from typing import Any, TypeVar

from flask import Blueprint, Flask, Response, current_app, g, jsonify, request
from flask.json.provider import DefaultJSONProvider
from pydantic import BaseModel, ValidationError
from werkzeug.exceptions import HTTPException, NotFound, Unauthorized

from retriever_server.corpus import replace_surrogates
from retriever_server.errors import Unavailable
from retriever_server.http import wire
from retriever_server.serving.served import Served

MAX_BODY_BYTES = 8 * 1024 * 1024
OPEN_ROUTES = {"/", "/health"}
Body = TypeVar("Body", bound=BaseModel)
Reply = tuple[Response, int]
routes = Blueprint("retriever", __name__)


class _Json(DefaultJSONProvider):
    sort_keys, ensure_ascii, compact = False, False, True

    def dumps(self, obj: Any, **options: Any) -> str:
        """JSON that can be encoded as UTF-8 even if a path in a message cannot."""
        return replace_surrogates(super().dumps(obj, **options))


def create_retriever_app(served: Served, token: str | None = None) -> Flask:
    """The application over `served`. With a `token`, all requests except to OPEN_ROUTES must carry it."""
    app = Flask(__name__, static_folder=None)
    app.config.update(MAX_CONTENT_LENGTH=MAX_BODY_BYTES, RETRIEVER_TOKEN=token)
    app.json = _Json(app)
    app.url_map.merge_slashes = False  # a redirect is no answer to a POST
    app.extensions["served"] = served
    app.register_blueprint(routes)
    return app


@routes.get("/")
def page() -> Response:
    """A page to search by hand."""
    return Response(files(__package__).joinpath("page.html").read_bytes(), mimetype="text/html")


@routes.get("/health")
def health() -> Reply:
    """ReSearch's health answer, with figures of the index."""
    served = _served()
    if served.searcher is None:
        return jsonify(status="loading", stage=served.stage), 503
    manifest = served.searcher.manifest
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


@routes.get("/metrics")
def metrics() -> Response:
    """The server's own metrics."""
    return Response(_served().metrics.text(), content_type="text/plain; version=0.0.4; charset=utf-8")


@routes.post("/search")
def search() -> Response:
    """ReSearch, one query."""
    body = _body(wire.SearchBody)
    excluded = [frozenset(body.exclude_ids)]
    [passages] = _served().passages([body.query], body.top_n, excluded, body.return_contents)
    return _json(wire.search_response(passages, body.return_score))


@routes.post("/batch_search")
def batch_search() -> Response:
    """ReSearch, many queries."""
    body = _body(wire.BatchSearchBody)
    excluded = wire.id_sets(body.exclude_ids)
    results = _served().passages(body.query, body.top_n, excluded, body.return_contents)
    return _json(wire.batch_search_response(results, body.return_score))


@routes.post("/retrieve")
def retrieve() -> Response:
    """Search-R1 and SkyRL."""
    body = _body(wire.RetrieveBody)
    excluded = wire.id_sets(body.exclude_ids)
    results = _served().passages(body.query_list(), body.topk, excluded, body.return_contents)
    return _json(wire.retrieve_response(results, body.return_scores))


@routes.post("/reload")
def reload() -> Reply:
    """Switch to the index now in the directory; 409 with the reason if that fails."""
    served = _served()
    if served.reload is None or current_app.config["RETRIEVER_TOKEN"] is None:
        raise NotFound("reloading over HTTP needs serve --reload and a token")
    try:
        served.reload()
    except Unavailable:
        raise
    except Exception as error:  # the old index stays in service, and the caller learns why
        return jsonify(error=f"still serving the old index: {' '.join(str(error).split())}"), 409
    return health()


@routes.app_errorhandler(ValidationError)
def malformed_body(error: ValidationError) -> Reply:
    """400 for what is not JSON; 422 for a wrong field, which the answer names."""
    not_json = error.errors(include_input=False)[0]["type"] == "json_invalid"
    return jsonify(wire.explain(error)), 400 if not_json else 422


@routes.app_errorhandler(Unavailable)
def unavailable(error: Unavailable) -> Reply:
    """503 with the seconds until a retry: loading, overloaded, or a part of the index is missing."""
    reply = jsonify(error=str(error))
    reply.headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    return reply, 503


@routes.app_errorhandler(HTTPException)
def http_error(error: HTTPException) -> Reply:
    """A wrong path or method, too large a body, a missing token."""
    reply = jsonify(error=error.description)
    if isinstance(error, Unauthorized):
        reply.headers["WWW-Authenticate"] = "Bearer"
    return reply, error.code or 500


@routes.app_errorhandler(Exception)
def internal_error(error: Exception) -> Reply:
    """Anything unexpected: the log gets the traceback, the client one line."""
    current_app.logger.error("%s %s failed", request.method, request.path, exc_info=error)
    return jsonify(error="internal error; see the server's log"), 500


@routes.before_app_request
def _check_token() -> None:
    g.began = time.perf_counter()
    token = current_app.config["RETRIEVER_TOKEN"]
    if token is None or request.path in OPEN_ROUTES:
        return
    given = request.headers.get("Authorization", "")
    if not hmac.compare_digest(given.encode("latin-1", "replace"), f"Bearer {token}".encode()):
        raise Unauthorized('this server requires the header "Authorization: Bearer TOKEN"')


@routes.after_app_request
def _count(response: Response) -> Response:
    route = request.url_rule.rule if request.url_rule else "none"
    metrics = _served().metrics
    metrics.requests.labels(route, str(response.status_code)).inc()
    metrics.request_seconds.labels(route).observe(time.perf_counter() - g.began)
    return response


def _served() -> Served:
    return current_app.extensions["served"]


def _json(body: bytes) -> Response:
    return Response(body, mimetype="application/json")


def _body(model: type[Body]) -> Body:
    # The content type is ignored: some clients send JSON without saying so.
    return model.model_validate_json(wire.well_formed_json(request.get_data(cache=False)))
