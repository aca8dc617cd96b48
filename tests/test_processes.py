"""Children of a run: one that does not end, a retriever that dies again and again, and its token."""

import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import psutil
import pytest
import ray
from omegaconf import OmegaConf

from research.processes import stop_descendants
from research.tools.search import TOKEN_VARIABLE
from research.training.run.options import Command, RecipeOptions, RunFailed
from research.training.run.retriever_keeper import (
    RETRIEVER_RESTARTS,
    RetrieverKeeper,
    is_healthy,
)
from research.training.verl import launch


class Stuck(psutil.Process):
    """As a process in a system call that cannot be interrupted: no signal ends it."""

    def terminate(self):
        return None

    kill = terminate


def test_a_child_that_nothing_ends_is_left_and_named(monkeypatch, capsys):
    with subprocess.Popen(["sleep", "60"]) as child:
        stuck = Stuck(child.pid)
        monkeypatch.setattr(psutil.Process, "children", lambda self, recursive: [stuck])
        started = time.monotonic()
        stop_descendants(patience=0.1, death=0.3)
        assert time.monotonic() - started < 10
        child.kill()
    error = capsys.readouterr().err
    assert str(child.pid) in error and "left behind" in error and error.count("\n") == 1


def test_descendants_end_also_if_they_do_not_listen():
    child = subprocess.Popen(["sh", "-c", "trap '' TERM; echo; sleep 60"], stdout=subprocess.PIPE)
    child.stdout.readline()
    stop_descendants(patience=0.5)
    assert not psutil.pid_exists(child.pid)
    child.stdout.close()


def keeper(tmp_path):
    """Of a server that ends at once."""
    options = RecipeOptions(hardware="cpu", run_dir=tmp_path)
    return RetrieverKeeper(
        SimpleNamespace(options=options, serve=Command("serve", ["true"]), retriever_url="http://127.0.0.1:1")
    )


def test_a_retriever_that_dies_again_and_again_ends_the_run(tmp_path, capsys):
    watched = keeper(tmp_path)
    for _ in range(RETRIEVER_RESTARTS):
        watched.process.wait()
        watched.keep_alive()
    watched.process.wait()
    with pytest.raises(RunFailed, match="died 11 times within"):
        watched.keep_alive()
    assert capsys.readouterr().err.count("restarting it") == RETRIEVER_RESTARTS


def test_deaths_of_long_ago_do_not_count(tmp_path):
    watched = keeper(tmp_path)
    for _ in range(3 * RETRIEVER_RESTARTS):
        watched.process.wait()
        watched.keep_alive()
        watched.deaths[-1] -= 3600
    watched.process.wait()
    assert watched.process.returncode == 0


class Guarded(BaseHTTPRequestHandler):
    """A server that wants a token on all routes."""

    def do_GET(self):
        self.send_response(200 if self.headers.get("Authorization") == "Bearer secret" else 401)
        self.end_headers()

    def log_message(self, *args):
        return None


def test_the_health_check_carries_the_token(monkeypatch):
    server = HTTPServer(("127.0.0.1", 0), Guarded)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert not is_healthy(url)
    monkeypatch.setenv(TOKEN_VARIABLE, "secret")
    assert is_healthy(url)
    server.shutdown()
    server.server_close()


def test_ray_workers_get_the_token_and_the_configuration_does_not(monkeypatch, capsys):
    started = {}
    monkeypatch.setattr(ray, "init", lambda **options: started.update(options))
    monkeypatch.setenv(TOKEN_VARIABLE, "secret")
    ray_init = {"num_cpus": 2, "address": "local", "runtime_env": {"env_vars": {"A": "1"}}}
    parts = {
        "transfer_queue": {"enable": False},
        "actor_rollout_ref": {"rollout": {"full_determinism": False}},
    }
    config = OmegaConf.create({"ray_kwargs": {"ray_init": ray_init}, **parts})
    launch._start_ray_with(launch._token(), config)
    environment = started["runtime_env"]["env_vars"]
    assert (environment[TOKEN_VARIABLE], environment["A"], started["num_cpus"]) == ("secret", "1", 2)
    assert "secret" not in OmegaConf.to_yaml(config) and "secret" not in capsys.readouterr().out
