"""Flask application: the page and its API. No path ever comes from the client: a trajectory is named by a key
that the catalogue looks up.

Routes:
    GET /                  the page; its scripts and styles are under /page/
    GET /api/state         what there is, after a look for what was written meanwhile
    GET /api/list          a part of the list: the fields of Query, offset, limit, and a, b to locate an entry
    GET /api/trajectory    one trajectory: side (0 or 1), key
"""

import ipaddress
import socket
from functools import cache
from urllib.parse import urlsplit

from flask import Flask, Response, current_app, jsonify, request
from flask.json.provider import DefaultJSONProvider
from pydantic import ValidationError
from werkzeug.exceptions import BadRequest, HTTPException, NotFound, UnprocessableEntity

from research.validation import first_fault
from research.viewer.catalogue import Catalogue
from research.viewer.query import Query

LIMIT = 500  # entries in one answer
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
Reply = tuple[Response, int]


def create_app(catalogue: Catalogue, host: str) -> Flask:
    """The application. Requests must name ``host``, a name of this machine, or an address as their host: a
    site whose name was pointed here (DNS rebinding) may not read.
    """
    app = Flask(__name__, static_folder="page", static_url_path="/page")
    provider = DefaultJSONProvider(app)
    provider.sort_keys = False
    app.json = provider
    app.config.update(CATALOGUE=catalogue, HOSTS={"localhost", host.lower()})
    app.add_url_rule("/", view_func=page)
    app.add_url_rule("/api/state", view_func=state)
    app.add_url_rule("/api/list", view_func=entries)
    app.add_url_rule("/api/trajectory", view_func=trajectory)
    app.before_request(_check_host)
    app.after_request(_secure)
    app.register_error_handler(ValidationError, _malformed)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(Exception, _internal_error)
    return app


def page() -> Response:
    """The page itself."""
    return current_app.send_static_file("index.html")


def state() -> Response:
    """What there is by now."""
    return jsonify(_catalogue().state())


def entries() -> Response:
    """A part of the list."""
    values = request.args.to_dict()
    offset, limit = _number(values.pop("offset", "0")), _number(values.pop("limit", "100"))
    keys = values.pop("a", ""), values.pop("b", "")
    locate = keys if any(keys) else None
    return jsonify(_catalogue().page(Query.model_validate(values), offset, min(limit, LIMIT), locate))


def trajectory() -> Response:
    """One trajectory."""
    side, key = _number(request.args.get("side", "0")), request.args.get("key", "")
    try:
        return jsonify(_catalogue().trajectory(side, key))
    except LookupError as error:
        raise NotFound(f"there is no trajectory {key}; its file may have been written anew") from error
    except RecursionError as error:
        raise UnprocessableEntity(f"trajectory {key} is nested too deeply to be shown") from error


def _number(text: str) -> int:
    if not text.isdecimal():
        raise BadRequest(f"{text!r} is not a whole number")
    return int(text)


def _check_host() -> None:
    name = _host_name(request.host)
    if not (name in current_app.config["HOSTS"] or _is_address(name) or name in _own_names()):
        raise BadRequest(
            f"{name!r} is no name that the viewer knows of this machine: open it by its address, or start it "
            "with --host NAME"
        )


def _host_name(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").removesuffix(".")
    except ValueError as error:
        raise BadRequest(f"{host!r} is no host") from error


def _is_address(name: str) -> bool:
    """Whether no name server had a say in it."""
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


def _secure(response: Response) -> Response:
    response.headers["Content-Security-Policy"] = POLICY
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Cache-Control"] = "no-cache"
    return response


def _malformed(error: ValidationError) -> Reply:
    return jsonify(error=first_fault(error)), 422


def _http_error(error: HTTPException) -> Reply:
    return jsonify(error=error.description), error.code or 500


def _internal_error(error: Exception) -> Reply:
    """Anything unforeseen: the terminal has the trace, the page one line."""
    current_app.logger.error("%s failed", request.path, exc_info=error)
    return jsonify(error=f"{type(error).__name__}: {error}"), 500


def _catalogue() -> Catalogue:
    catalogue: Catalogue = current_app.config["CATALOGUE"]
    return catalogue
