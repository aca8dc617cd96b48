"""Options that contradict one another, a card, a model or a checkpoint are told before anything starts."""

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from click.testing import CliRunner
from test_recipe_options import compose, options
from transformers import LlamaConfig

from research.training.__main__ import resolve_options, search_r1
from research.training.run import preflight
from research.training.run.execute import _check_size
from research.training.run.options import RunFailed
from research.training.run.plan import make_plan
from research.training.run.preflight import checkpoint_faults, problems
from research.training.run.small_policy import SMOLLM2
from research.training.sizes.fit import fit_to_model

GB = 10**9
ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"


def test_an_index_of_the_users_own_is_another_one(tmp_path: Path) -> None:
    """Or the one that was built before from the same corpus would be served in its place."""
    corpus, given = tmp_path / "corpus.jsonl", tmp_path / "made.index"
    given.write_bytes(b"one")

    def folder() -> str:
        return make_plan(options(tmp_path, corpus=corpus, faiss_index=given, index="flat")).build[-1].argv[5]

    without = make_plan(options(tmp_path, corpus=corpus, index="flat")).build[-1].argv[5]
    first = folder()
    given.write_bytes(b"another")
    assert len({without, first, folder()}) == 3


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"retriever_url": "http://127.0.0.1:1", "index": "bm25"},
            "--index: without effect beside --retriever",
        ),
        ({"retriever_url": "http://127.0.0.1:1", "corpus": Path("wiki18")}, "--corpus: without effect"),
        ({"index": "bm25", "encoder": "minilm"}, "--encoder: without effect beside --index bm25"),
    ],
)
def test_an_option_without_effect_is_refused(tmp_path: Path, given: dict[str, object], said: str) -> None:
    assert any(said in line for line in problems(make_plan(options(tmp_path, **given))))


def test_a_run_resumes_with_a_retriever_elsewhere(tmp_path: Path) -> None:
    saved = options(tmp_path, corpus=tmp_path / "corpus.jsonl", index="bm25")
    saved.run_dir.mkdir()
    saved.save(saved.run_dir / "recipe.json")
    moved = replace(saved, retriever_url="http://127.0.0.1:1")
    assert not any("without effect" in line for line in problems(make_plan(moved)))


def test_a_plan_for_a_larger_card_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "gpu_memory", lambda: [24 * GB])
    faults = problems(make_plan(options(tmp_path, "gpu", gpus=1, gpu_memory=80)))
    assert "--gpu-memory 80: a GPU of this machine has 24.0 GB" in faults


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (f"{ACTOR}.ppo_max_token_len_per_gpu", 100, "100 tokens, and the longest sequence may have 8704"),
        (f"{ROLLOUT}.tensor_model_parallel_size", 3, "3 does not divide the 8 GPUs"),
        ("data.max_response_length", 40000, "knows 32768 positions"),
    ],
)
def test_what_verl_would_refuse_after_loading(tmp_path: Path, key: str, value: int, said: str) -> None:
    asked = options(tmp_path, "gpu", gpus=8, gpu_memory=80, overrides=(f"{key}={value}",))
    config = compose(tmp_path, "gpu", f"{key}={value}", gpus=8)
    assert any(said in line for line in fit_to_model(asked, "Qwen/Qwen2.5-7B-Instruct", config).faults)


@pytest.mark.parametrize("hardware", ["cpu", "gpu"])
def test_the_size_of_a_policy_is_known_before_it_is_fetched(tmp_path: Path, hardware: str) -> None:
    def sized(policy: str, **words: str) -> str | None:
        return make_plan(options(tmp_path, hardware, policy=policy, **words)).sized_model

    assert sized("tiny") is None or hardware == "gpu"
    assert sized("smollm2") == SMOLLM2
    assert sized("smollm2", model="a/b") == sized("tiny", model="a/b") == "a/b"


@pytest.mark.parametrize("free", [1, 50])
def test_memory_that_others_hold_is_told(
    tmp_path: Path, free: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model of 0.4 B parameters is trained on a CPU in more than 1 GB, and in less than 50."""
    LlamaConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=16).save_pretrained(tmp_path)
    plan, config = make_plan(options(tmp_path, model=str(tmp_path))), compose(tmp_path, "cpu")
    memory = SimpleNamespace(total=64 * GB, available=free * GB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    _check_size(plan, config)
    assert ("1.0 GB is free now" in " ".join(capsys.readouterr().err.split())) == (free == 1)


def test_a_checkpoint_is_loaded_by_as_many_gpus(tmp_path: Path) -> None:
    config = compose(tmp_path, "gpu", gpus=4)
    actor = tmp_path / "run/checkpoints/global_step_3/actor"
    actor.mkdir(parents=True)
    (actor / "model_world_size_8_rank_0.pt").touch()
    (actor.parents[1] / "latest_checkpointed_iteration.txt").write_text("3")
    (fault,) = checkpoint_faults(tmp_path / "run", config)
    assert "written by 8 GPUs" in fault and "not by 4" in fault
    eight = copy.deepcopy(config)
    eight.trainer.nnodes = 2
    assert not list(checkpoint_faults(tmp_path / "run", eight))


def test_the_help_of_search_r1_names_its_own_defaults() -> None:
    said = " ".join(CliRunner().invoke(search_r1, ["--help"], prog_name="search_r1").output.split())
    for default in ("[runs/train_search_r1-TIME]", "[Qwen2.5-3B | tiny]", "[NQ and HotpotQA | mini world]"):
        assert default in said
    assert "MuSiQue |" not in said and "7B" not in said.replace("Qwen/Qwen2.5-7B --dry-run", "")


def test_a_word_stays_a_word_when_a_run_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In another folder there may be a file of that name."""
    run = tmp_path / "run"
    run.mkdir()
    options(tmp_path, corpus=Path("wiki18")).save(run / "recipe.json")
    values = {"hardware": "cpu", "run_dir": run, "corpus": Path("wiki18")}
    monkeypatch.chdir(tmp_path)
    assert resolve_options(dict(values), {"corpus"}, resume=True).corpus == Path("wiki18")
    (tmp_path / "wiki18").write_text("{}")
    with pytest.raises(RunFailed, match="was started with --corpus wiki18"):
        resolve_options(dict(values), {"corpus"}, resume=True)
