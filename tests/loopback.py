"""Retrieval servers on loopback for tests of the client, good and bad ones, and what it makes of them."""

import asyncio
import json
import socket
import threading
import time
from contextlib import contextmanager

from flask import Flask, Response, jsonify, request
from werkzeug.serving import make_server

from research.tools.search import RetrieverClient, RetrieverConfig


@contextmanager
def serving(app, port=0):
    server = make_server("127.0.0.1", port, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def speaking(first_words):
    """A port that greets each connection with these words: no HTTP."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(first_words)
                    connection.recv(65536)

        thread = threading.Thread(target=greet)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def retriever(faults=(), calls=None, delay=0.0):
    """A server of both wire formats that first answers with the given status codes."""
    app, left, calls = Flask("retriever"), list(faults), calls if calls is not None else []

    def document(query, rank):
        contents = {"contents": f"{query}\npassage {rank}"}
        return {"id": rank} | (contents if request.get_json().get("return_contents", True) else {})

    @app.before_request
    def record():
        calls.append(request.get_json())
        delay() if callable(delay) else time.sleep(delay)
        return ("no", left.pop(0)) if left else None

    @app.post("/search")
    def search():
        body = request.get_json()
        documents = [document(body["query"], rank) for rank in range(body["top_n"])]
        return jsonify([documents, [1.0 / (rank + 1) for rank in range(len(documents))]])

    @app.post("/retrieve")
    def retrieve():
        body = request.get_json()
        return jsonify(
            {"result": [[{"document": document(q, 0), "score": 0.5}] * body["topk"] for q in body["queries"]]}
        )

    return app


def answering(body, status=200, mimetype="application/json", calls=None, headers=None):
    """A server of both wire formats that always gives this answer."""
    app, calls = Flask("answering"), calls if calls is not None else []

    def answer():
        calls.append(request.get_json())
        text = body if isinstance(body, str | bytes) else json.dumps(body)
        return Response(text, status, headers, mimetype=mimetype)

    app.add_url_rule("/search", view_func=answer, methods=["POST"], endpoint="search")
    app.add_url_rule("/retrieve", view_func=answer, methods=["POST"], endpoint="retrieve")
    return app


def ask(url, *queries, **options):
    async def run():
        client = RetrieverClient(RetrieverConfig(url=url, top_k=2, **{"deadline": 5.0, **options}))
        try:
            return await asyncio.gather(*(client(query) for query in queries), return_exceptions=True)
        finally:
            await client.close()

    return asyncio.run(run())
