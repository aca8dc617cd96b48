"""The exported policy and its model card, pushed over a socket to a stand-in of the hub's HTTP interface."""

import hashlib
import json
import sys
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner, Result
from flask import Flask, jsonify, request
from huggingface_hub import constants
from loopback import serving
from omegaconf import OmegaConf
from run_folder import episode as played
from run_folder import step_row, write_episodes, write_rows
from test_recipe_options import compose, options

from research.training.__main__ import main
from research.training.run import hub
from research.training.run.options import RecipeOptions, RunFailed
from research.training.run.plan import make_plan
from research.training.run_files import read_revisions, record_revision
from research.training.watch.card import without_folders

WEIGHTS = bytes(range(256)) * 1000


class Hub:
    """What of the hub a push asks: the repositories, their files by commit, and the large files it stores.

    `refusals` maps the beginning of a path to the status and message with which it is refused.
    """

    def __init__(self) -> None:
        self.private: dict[str, bool] = {}
        self.commits: list[tuple[str, dict[str, bytes]]] = []
        self.files: dict[str, bytes] = {}  # of the one repository after all commits
        self.stored: dict[str, bytes] = {}
        self.uploads: list[str] = []
        self.refusals: dict[str, tuple[int, str]] = {}
        self.app = Flask("hub")
        self.app.before_request(self._refuse)
        self.app.post("/api/repos/create")(self._create)
        self.app.post("/api/validate-yaml")(lambda: jsonify({"errors": [], "warnings": []}))
        self.app.post("/api/models/<owner>/<name>/preupload/main")(self._preupload)
        self.app.post("/<owner>/<name>.git/info/lfs/objects/batch")(self._batch)
        self.app.put("/storage/<oid>")(self._store)
        self.app.post("/api/models/<owner>/<name>/commit/main")(self._commit)
        self.app.get("/api/models/<owner>/<name>/revision/main")(self._info)
        self.app.get("/api/models/<owner>/<name>/tree/main")(self._tree)

    def _refuse(self) -> Any:
        if (
            not request.path.startswith("/storage")
            and request.headers.get("Authorization") != "Bearer hf_good"
        ):
            return jsonify({"error": "Invalid username or password."}), 401
        for path, (status, message) in self.refusals.items():
            if request.path.startswith(path):
                return jsonify({"error": message}), status
        return None

    def _create(self) -> Any:
        body = request.get_json()
        repository = f"{body['organization'] or 'me'}/{body['name']}"
        status = 409 if repository in self.private else 200
        self.private.setdefault(repository, body.get("visibility") == "private")
        return jsonify({"url": f"{request.host_url}{repository}"}), status

    def _preupload(self, owner: str, name: str) -> Any:
        modes = {True: "lfs", False: "regular"}
        return jsonify(
            {
                "files": [
                    {
                        "path": each["path"],
                        "uploadMode": modes[each["path"].endswith(".safetensors")],
                        "shouldIgnore": False,
                    }
                    for each in request.get_json()["files"]
                ]
            }
        )

    def _batch(self, owner: str, name: str) -> Any:
        objects = request.get_json()["objects"]
        for each in objects:
            if each["oid"] not in self.stored:
                each["actions"] = {"upload": {"href": f"{request.host_url}storage/{each['oid']}"}}
        return jsonify({"transfer": "basic", "objects": objects})

    def _store(self, oid: str) -> Any:
        content = request.get_data()
        assert hashlib.sha256(content).hexdigest() == oid
        self.stored[oid] = content
        self.uploads.append(oid)
        return ""

    def _commit(self, owner: str, name: str) -> Any:
        lines = [json.loads(line) for line in request.get_data().splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        files = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "deletedFile":
                del self.files[value["path"]]
            elif line["key"] == "file":
                files[value["path"]] = b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.stored[value["oid"]]
        self.commits.append((header["summary"], files))
        self.files |= files
        url = f"{request.host_url}{owner}/{name}/commit/{len(self.commits)}"
        return jsonify(
            {"success": True, "commitUrl": url, "commitOid": str(len(self.commits)), "hookOutput": ""}
        )

    def _tree(self, owner: str, name: str) -> Any:
        return jsonify([{"type": "file", "path": path, "size": 1, "oid": "0"} for path in self.files])

    def _info(self, owner: str, name: str) -> Any:
        return jsonify({"id": f"{owner}/{name}", "sha": "0"})


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    made = Hub()
    with serving(made.app) as url:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        # The other protocol for large files has storage of its own, for which nothing here could stand in.
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setenv("HF_TOKEN", "hf_good")
        yield made


@pytest.fixture
def ended(tmp_path: Path) -> Path:
    """A run that has ended, with its policy."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    asked = RecipeOptions(
        "cpu", run_dir, seed=7, overrides=("research.reward=f1_format",), test=Path("/home/i/t.jsonl")
    )
    asked.save(run_dir / "recipe.json")
    config = compose(tmp_path, "cpu", "research.reward=f1_format")
    config.actor_rollout_ref.model.path = "/home/i/models/tiny"
    config.trainer.total_training_steps = 4
    OmegaConf.save(config, run_dir / "config.yaml")
    record_revision(run_dir)
    write_rows(run_dir, step_row(4, **{"validation/evaluated_step": 4.0}))
    for step in (0, 4):
        write_episodes(run_dir, "test", step, *(played(n, float(n < 2 + step), step=step) for n in range(10)))
    (run_dir / "data").mkdir()
    pq.write_table(
        pa.table({"data_source": ["train_2hop"] * 3 + ["nq|x"]}), run_dir / "data" / "train.parquet"
    )
    policy = run_dir / "policy"
    policy.mkdir()
    (policy / "config.json").write_text("{}")
    (policy / "model.safetensors").write_bytes(WEIGHTS)
    (policy / "step.txt").write_text("global_step_4\n")
    return run_dir


def push(run_dir: Path, name: str = "someone/searcher") -> Result:
    return CliRunner().invoke(main, ["push", str(run_dir), name])


def test_policy_and_card_go_up_in_one_commit(stand_in: Hub, ended: Path) -> None:
    result = push(ended)
    assert result.exit_code == 0, result.output
    ((summary, files),) = stand_in.commits
    assert summary == "The policy of step 4" and "/someone/searcher/commit/1" in result.output
    assert files.keys() == {"README.md", "config.json", "model.safetensors"}
    assert files["model.safetensors"] == WEIGHTS
    assert files["README.md"] == (ended / "policy" / "README.md").read_bytes()
    assert stand_in.private == {"someone/searcher": True}


def test_a_name_without_an_owner_is_the_users_own(stand_in: Hub, ended: Path) -> None:
    assert push(ended, "searcher").exit_code == 0
    assert stand_in.private.keys() == {"me/searcher"}


def test_the_card_tells_of_the_run_and_not_of_the_machine(stand_in: Hub, ended: Path) -> None:
    push(ended)
    _, front, text = (ended / "policy" / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "transformers" and "grpo" in yaml.safe_load(front)["tags"]
    assert "base_model" not in yaml.safe_load(front), "a folder is no name on the hub"
    for said in (
        "# searcher",
        "`tiny`, trained with GRPO to search: the policy of step 4 of 4",
        "| train | train_2hop | 3 |",
        "| train | nq\\|x | 1 |",
        "- reward: `f1_format`",
        "| test_2hop | 10 | 0.200 [",
        "train_musique.sh --hardware cpu --test t.jsonl --seed 7 research.reward=f1_format",
        f"- {read_revisions(ended)[0]}",
    ):
        assert said in text
    assert "/home/" not in text and str(ended) not in text


def test_a_model_of_the_hub_is_named_as_the_base(stand_in: Hub, ended: Path) -> None:
    config = OmegaConf.load(ended / "config.yaml")
    config.actor_rollout_ref.model.path = "Qwen/Qwen2.5-7B-Instruct"
    OmegaConf.save(config, ended / "config.yaml")
    push(ended)
    front = (ended / "policy" / "README.md").read_text().split("---\n")[1]
    assert yaml.safe_load(front)["base_model"] == "Qwen/Qwen2.5-7B-Instruct"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("--corpus /a/b/c.jsonl 'x=/d/e f=[/g/h, i]'", "--corpus c.jsonl 'x=e f=[h, i]'"),
        ("/a", "a"),
        ("Qwen/Qwen2.5-7B http://host/path a/b", "Qwen/Qwen2.5-7B http://host/path a/b"),
    ],
)
def test_folders_are_left_out(text: str, left: str) -> None:
    assert without_folders(text) == left


# -------------------------------------------------------------------------------------- what can go wrong


def refused(result: Result) -> str:
    (line,) = result.output.strip().splitlines()[-1:]
    assert result.exit_code == 1 and line.startswith("Error: nothing was pushed to")
    assert f"to try again: {sys.executable} -m research.training push" in line
    return line


def test_without_a_token_one_line_says_so(
    stand_in: Hub, ended: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert "there is no token of the hub: run `hf auth login`, or set HF_TOKEN" in refused(push(ended))
    monkeypatch.setenv("HF_TOKEN", "hf_bad")
    assert "status 401 (Invalid username or password.)" in refused(push(ended))
    assert not stand_in.commits


@pytest.mark.parametrize(
    "path", ["/api/repos/create", "/someone/searcher.git", "/api/models/someone/searcher/commit"]
)
def test_what_the_hub_refuses_can_be_repeated_and_nothing_is_sent_twice(
    stand_in: Hub, ended: Path, path: str
) -> None:
    stand_in.refusals[path] = (403, "You don't have the rights")
    assert "status 403 (You don't have the rights" in refused(push(ended))
    assert (ended / "policy" / "model.safetensors").read_bytes() == WEIGHTS and not stand_in.commits
    stand_in.refusals.clear()
    assert push(ended).exit_code == 0 and len(stand_in.commits) == 1
    assert len(stand_in.uploads) == 1


def test_without_a_network_one_line_says_so(
    stand_in: Hub, ended: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    assert "no connection to http://127.0.0.1:1" in refused(push(ended))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "offline mode is enabled" in refused(push(ended))


@pytest.mark.parametrize("name", ["a/b/c", "--x", "a b", "..", "a--b"])
def test_a_name_that_can_be_none_is_refused_before_anything(ended: Path, name: str) -> None:
    result = CliRunner().invoke(main, ["push", str(ended), "--", name])
    assert result.exit_code == 2 and "NAME or OWNER/NAME" in result.output
    result = CliRunner().invoke(main, ["musique", f"--push-to-hub={name}", "--dry-run"])
    assert result.exit_code == 2 and "NAME or OWNER/NAME" in result.output


def test_a_run_without_a_policy_says_how_to_export_one(stand_in: Hub, ended: Path) -> None:
    (ended / "policy" / "step.txt").unlink()
    assert f"has no policy yet: export it first (--export --run-dir {ended})" in refused(push(ended))


# ------------------------------------------------------------------------------------------- the recipe


def test_a_run_is_told_before_its_start_what_it_lacks_for_a_push(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    asked = options(tmp_path, push_to_hub="me/x")
    config = compose(tmp_path, "cpu", "trainer.save_freq=-1")
    assert [*hub.faults(asked, config)] == [
        f"--push-to-hub: {hub.NO_TOKEN}",
        "--push-to-hub: no policy will be written: trainer.save_freq is not above 0",
    ]
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    assert not [*hub.faults(asked, compose(tmp_path))] and not [*hub.faults(options(tmp_path), config)]


def test_export_can_push(stand_in: Hub, ended: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from research.training import __main__ as commands

    monkeypatch.setattr(commands, "export", lambda run_dir: None)
    words = ["musique", "--hardware", "cpu", "--run-dir", str(ended), "--export"]
    assert CliRunner().invoke(main, words).exit_code == 0 and not stand_in.commits
    result = CliRunner().invoke(main, [*words, "--push-to-hub", "me/x"])
    assert result.exit_code == 0, result.output
    assert len(stand_in.commits) == 1


def test_a_run_pushes_at_its_end_and_keeps_everything_if_it_cannot(
    stand_in: Hub, ended: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from research.training.run import execute

    plan = make_plan(RecipeOptions("cpu", ended, push_to_hub="me/x"))
    for name in ("_prepare_and_train", "export"):
        monkeypatch.setattr(execute, name, lambda *_: None)
    monkeypatch.setattr(execute.processes, "stop_descendants", lambda: None)
    stand_in.refusals["/api/repos"] = (403, "no")
    with pytest.raises(RunFailed, match="nothing was pushed to me/x"):
        execute._carry_out(plan, compose(ended.parent))
    assert (ended / "report.html").exists() and (ended / "policy" / "config.json").exists()
    stand_in.refusals.clear()
    execute._carry_out(plan, compose(ended.parent))
    assert len(stand_in.commits) == 1


def test_an_adapter_goes_up_without_the_folders_of_this_machine(stand_in: Hub, ended: Path) -> None:
    config = OmegaConf.load(ended / "config.yaml")
    config.actor_rollout_ref.model.lora_rank = 8
    OmegaConf.save(config, ended / "config.yaml")
    described = {"base_model_name_or_path": "/home/i/models/tiny", "r": 8}
    (ended / "policy" / "lora_adapter").mkdir()
    (ended / "policy" / "lora_adapter" / "adapter_config.json").write_text(json.dumps(described))
    assert push(ended).exit_code == 0
    files = stand_in.commits[0][1]
    assert json.loads(files["lora_adapter/adapter_config.json"])["base_model_name_or_path"] == "tiny"
    assert "LoRA rank, with the adapter in lora_adapter: `8`" in files["README.md"].decode()


def test_weights_of_an_earlier_push_do_not_stay(stand_in: Hub, ended: Path) -> None:
    stand_in.files |= dict.fromkeys(
        ("model-00001-of-00002.safetensors", "lora_adapter/x.json", "LICENSE"), b""
    )
    assert push(ended).exit_code == 0
    assert stand_in.files.keys() == {"LICENSE", "README.md", "config.json", "model.safetensors"}


def test_a_revision_is_written_once(tmp_path: Path) -> None:
    for _ in range(2):
        record_revision(tmp_path)
    (line,) = read_revisions(tmp_path)
    assert line.startswith("research-rl 0.1.0") and ", veRL " in line
