"""Flask application: the page and its API. No path comes from the client; the catalogue looks up keys.

Routes:
    GET /                  the page; its scripts and styles are under /page/
    GET /api/state         what there is, after a look for newly written lines
    GET /api/list          a part of the list: fields of ListQuery, offset, limit; a, b locate an entry
    GET /api/trajectory    one trajectory: side (0 or 1), key
"""

import ipaddress
import socket
from functools import cache
from urllib.parse import urlsplit

from flask import Flask, Response, jsonify, request
from flask.json.provider import DefaultJSONProvider
from pydantic import ValidationError
from werkzeug.exceptions import BadRequest, HTTPException, NotFound, UnprocessableEntity

from research.validation import first_fault
from research.viewer.catalogue import Catalogue
from research.viewer.query import ListQuery

LIMIT = 500  # entries in one answer
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


def viewer_app(catalogue: Catalogue, host: str) -> Flask:
    """The application.

    The host of a request must be ``host``, a name of this machine, or an address: a site whose name was
    pointed here (DNS rebinding) may not read.
    """
    app = Flask(__name__, static_folder="page", static_url_path="/page")
    provider = DefaultJSONProvider(app)
    provider.sort_keys = False
    app.json = provider
    app.add_url_rule("/", view_func=lambda: app.send_static_file("index.html"), endpoint="page")
    app.before_request(lambda: _check_host({"localhost", host.lower()}))
    app.after_request(_add_headers)
    app.register_error_handler(Exception, lambda error: _error(app, error))

    @app.get("/api/state")
    def state() -> Response:
        return jsonify(catalogue.state())

    @app.get("/api/list")
    def entries() -> Response:
        values = request.args.to_dict()
        offset, limit = _number(values.pop("offset", "0")), _number(values.pop("limit", "100"))
        keys = values.pop("a", ""), values.pop("b", "")
        locate = keys if any(keys) else None
        return jsonify(catalogue.page(ListQuery.model_validate(values), offset, min(limit, LIMIT), locate))

    @app.get("/api/trajectory")
    def trajectory() -> Response:
        side, key = _number(request.args.get("side", "0")), request.args.get("key", "")
        try:
            return jsonify(catalogue.trajectory(side, key))
        except LookupError as error:
            raise NotFound(f"there is no trajectory {key}; its file may have been rewritten") from error
        except RecursionError as error:
            raise UnprocessableEntity(f"trajectory {key} is nested too deeply to be shown") from error

    return app


def _number(text: str) -> int:
    if not text.isdecimal():
        raise BadRequest(f"{text!r} is not a whole number")
    return int(text)


def _check_host(hosts: set[str]) -> None:
    try:
        name = (urlsplit(f"//{request.host}").hostname or "").removesuffix(".")
    except ValueError as error:
        raise BadRequest(f"{request.host!r} is no host") from error
    if not (name in hosts or _is_address(name) or name in _own_names()):
        raise BadRequest(
            f"{name!r} is no name of this machine that the viewer knows: open it by its address, or start it "
            "with --host NAME"
        )


def _is_address(name: str) -> bool:
    """Whether no name server was involved."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


@cache  # without a network the last one takes seconds
def _own_names() -> set[str]:
    name = socket.gethostname().lower()
    short = name.partition(".")[0]
    return {name, short, f"{short}.local", socket.getfqdn().lower()}


def _add_headers(response: Response) -> Response:
    response.headers.update(HEADERS)
    return response


def _error(app: Flask, error: Exception) -> tuple[Response, int]:
    """One line for the page; for anything unforeseen the terminal gets the traceback."""
    if isinstance(error, ValidationError):
        return jsonify(error=first_fault(error)), 422
    if isinstance(error, HTTPException):
        return jsonify(error=error.description), error.code or 500
    app.logger.error("%s failed", request.path, exc_info=error)
    return jsonify(error=f"{type(error).__name__}: {error}"), 500
