"""The recipe of query reasoners without a training: options, rows, lines, table, report, and the viewer."""

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from conftest import ScriptedEngine
from omegaconf import OmegaConf
from run_folder import make_run, step_row, write_episodes, write_rows

from research.datasets.rewriting_tasks import RewritingTask, read_tasks, write_tasks
from research.datasets.stack_exchange.positives import passage_id, write_positives
from research.environments.query_rewriting import HEADLINE as REWRITINGS
from research.environments.query_rewriting import task_of
from research.episode.protocol import Protocol
from research.episode.trajectory import Segment, Trajectory
from research.errors import DataError
from research.training.__main__ import resolve_options
from research.training.__main__ import rqr as main
from research.training.config import GuardConfig, headline_of, read_research_config
from research.training.rows import write_run_rows
from research.training.run.options import RecipeOptions, RunFailed
from research.training.run.plan import compose_config, make_plan
from research.training.watch.guards import check_guards, failed_share
from research.training.watch.progress import StepPrinter
from research.training.watch.report import write_training_report
from research.training.watch.table import as_text, failures_warning, header_of, table_rows
from research.training.watch.validations import EVALUATED_STEP
from research.viewer.rows import make_row
from research.viewer.view import trajectory_view


def options(tmp_path, hardware="cpu", **values):
    return RecipeOptions(hardware, tmp_path / "run", "rqr", **values)


def compose(tmp_path, hardware="cpu", *overrides, **values):
    return compose_config(make_plan(options(tmp_path, hardware, overrides=overrides, **values)).on_port(1))


def dry_run(*arguments):
    """In a process of its own: veRL fixes its platform at import."""
    command = [sys.executable, "-m", "research.training", "rqr", "--dry-run", *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if name != "VERL_PLATFORM"}
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)


# ------------------------------------------------------------------------------------ options, configuration


def test_gpu_profile_has_the_hyper_parameters_of_the_reference(tmp_path):
    config = compose(tmp_path, "gpu", gpus=8)
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    assert (config.data.train_batch_size, rollout.n, actor.ppo_mini_batch_size) == (12, 16, 12)
    assert (config.data.max_prompt_length, config.data.max_response_length) == (8000, 500)
    assert (actor.use_kl_loss, actor.kl_loss_coef, actor.grad_clip) == (True, 0.008, 0.1)
    optim = actor.optim
    assert (optim.lr, optim.lr_scheduler_type, optim.min_lr_ratio) == (1e-6, "cosine", 0.1)
    assert (optim.lr_warmup_steps_ratio, list(optim.betas), optim.weight_decay) == (0.1, [0.9, 0.99], 0.1)
    assert config.trainer.total_training_steps == 150
    assert config.actor_rollout_ref.model.path == "Qwen/Qwen2.5-7B-Instruct"
    assert config.research.rewriting.encoder == "BAAI/bge-base-en-v1.5"
    smaller = compose(tmp_path, "gpu", gpus=1, model="Qwen/Qwen2.5-1.5B-Instruct")
    assert smaller.actor_rollout_ref.model.path == "Qwen/Qwen2.5-1.5B-Instruct"


def test_a_policy_that_thinks_is_read_in_the_form_of_its_prompt(tmp_path, tag_tokens):
    words = ("research.prompt=rqr_think", "research.rewriting.think=true", "research.retriever.deadline=0.1")
    config = read_research_config(compose(tmp_path, "cpu", *words, "research.reward=retrieval_gain").research)
    engine = ScriptedEngine(tag_tokens, ["<think>a</think><answer>the terms</answer>"])
    row = {
        "extra_info": {"id": "1", "question": "why?", "positives": [], "gold_ids": ["a"], "excluded_ids": []}
    }
    trajectory = asyncio.run(config.environment.play(row, engine.generate, tag_tokens))
    assert trajectory.metadata["text"] == "the terms" and trajectory.metrics["empty"] == 0.0
    assert trajectory.reward == 0.0 and "not scored" in trajectory.reward_reason  # nobody is there to search


def test_gpu_dry_run_passes_verls_own_validation(tmp_path):
    tasks = tmp_path / "mine.tasks.jsonl"
    done = dry_run("--hardware", "gpu", "--gpus", 8, "--run-dir", tmp_path / "run", "--tasks", tasks)
    assert done.returncode == 0, done.stderr
    for command in (
        "research.datasets.stack_exchange.positives",
        "--index bm25",
        "research.training.verl.launch",
    ):
        assert command in done.stdout
    assert f"--tasks: there is no file {tasks}" in done.stdout and not (tmp_path / "run").exists()


def test_cpu_dry_run_prints_configuration_and_commands(tmp_path):
    done = dry_run("--run-dir", tmp_path / "run", "--steps", 3)
    assert done.returncode == 0, done.stderr
    assert "total_training_steps: 3" in done.stdout and "reward: retrieval_gain" in done.stdout
    for module in ("research.datasets.mini_rewriting.world", "research.datasets.mini_rewriting.policy"):
        assert module in done.stdout


def test_rewards_are_named_or_mixed(tmp_path):
    assert compose(tmp_path, "cpu", "research.reward=embedding_gain").research.reward == "embedding_gain"
    mixed = compose(tmp_path, "cpu", "research.reward={retrieval_gain: 1.0, embedding_gain: 0.1}")
    settings = read_research_config(mixed.research).environment.settings
    assert settings.reward == {"retrieval_gain": 1.0, "embedding_gain": 0.1}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("research.reward=exact_match", "retrieval_gain"),
        ("research.rewriting.metric=map", "ndcg, recall"),
        ("research.rewriting.lenght_penalty=1", "lenght_penalty"),
        ("research.controls=[shuffled]", "controls"),
        ("research.retriever.top_k=3", "top_k"),
    ],
)
def test_unknown_keys_and_values_fail(tmp_path, override, message):
    with pytest.raises(RunFailed, match=message):
        compose(tmp_path, "cpu", override)


def test_wrong_path_is_named_by_the_option_of_this_recipe(tmp_path):
    result = CliRunner().invoke(main, ["--run-dir", str(tmp_path / "run"), "--tasks", str(tmp_path / "no")])
    assert result.exit_code == 1 and "--tasks: there is no file" in result.output


def test_a_run_of_the_other_recipe_is_refused(tmp_path):
    saved = replace(options(tmp_path), recipe="musique")
    saved.run_dir.mkdir()
    saved.save(saved.run_dir / "recipe.json")
    with pytest.raises(RunFailed, match="train_musique.sh"):
        resolve_options({**vars(options(tmp_path))}, set(), resume=True)


# -------------------------------------------------------------------------------------------------- the rows


TASKS = [RewritingTask(f"t{n}", f"word {n}", (f"text {n}", "both"), (str(n),), ("x",), "s") for n in range(6)]


@pytest.fixture
def prepared(tmp_path, tag_tokens):
    """A run folder with its configuration and a task file beside it."""
    tag_tokens.tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    config = compose(tmp_path, "cpu", "data.train_batch_size=4", model=str(tmp_path / "model"))
    (tmp_path / "run").mkdir()
    OmegaConf.save(config, tmp_path / "run" / "config.yaml")
    write_tasks(tmp_path / "train.tasks.jsonl", TASKS)
    return tmp_path


def test_rows_hold_the_whole_task(prepared):
    file = prepared / "train.tasks.jsonl"
    write_run_rows(prepared / "run", file, None, file)
    rows = {
        split: pq.read_table(prepared / "run" / "data" / f"{split}.parquet").to_pylist()
        for split in ("train", "validation", "test")
    }
    assert [len(each) for each in rows.values()] == [5, 1, 6]
    assert {row["data_source"] for row in rows["test"]} == {"test_s"}
    assert [task_of(row["extra_info"]) for row in rows["test"]] == [replace(t, source="") for t in TASKS]


@pytest.mark.parametrize(
    ("field", "reward"), [("gold_ids", "retrieval_gain"), ("positives", "embedding_gain")]
)
def test_a_task_that_lacks_what_its_reward_needs_is_named(prepared, field, reward):
    config = OmegaConf.load(prepared / "run" / "config.yaml")
    config.research.reward = reward
    OmegaConf.save(config, prepared / "run" / "config.yaml")
    write_tasks(prepared / "bad.jsonl", [*TASKS[:5], replace(TASKS[5], **{field: ()})])
    with pytest.raises(DataError, match=f'bad.jsonl: task t5 has no "{field}"'):
        write_run_rows(prepared / "run", prepared / "bad.jsonl", None)


def test_positives_are_a_corpus(tmp_path):
    write_tasks(tmp_path / "mine.parquet", TASKS)
    assert write_positives(tmp_path / "out", {"train": tmp_path / "mine.parquet"}) == 7
    passages = [json.loads(line) for line in (tmp_path / "out" / "corpus.jsonl").read_text().splitlines()]
    assert {row["id"]: row["contents"] for row in passages}[passage_id("both")] == "both"
    first = read_tasks(tmp_path / "out" / "train.tasks.jsonl")[0]
    assert first.gold_ids == (passage_id("text 0"), passage_id("both")) and first.excluded_ids == ()


# -------------------------------------------------------------------------------------------- what people see


def rewriting(number, ndcg, step, failed=0.0, source="test_s"):
    metrics = {"ndcg_at_10": ndcg, "recall_at_10": ndcg, "original_ndcg": 0.25, "gain": ndcg - 0.25}
    metrics |= {"response_tokens": 8.0, "scoring_failed": failed, "empty": 0.0, "cut_by_length": 0.0}
    metadata = {"id": f"q{number}", "question": f"Question {number}?", "data_source": source, "step": step}
    metadata |= {
        "sample": 0,
        "control": "",
        "text": "other words",
        "gold_ids": ["1"],
        "found_ids": ["1", "2"],
    }
    return Trajectory(
        [0],
        [Segment("model", [1], [-0.1], "other words")],
        finish_reason="eos",
        reward=ndcg - 0.25,
        reward_reason="retrieval_gain",
        metrics=metrics,
        metadata={**metadata, "original_found_ids": ["2"]},
    )


@pytest.fixture
def run_dir(tmp_path):
    run = make_run(tmp_path / "run")
    config = OmegaConf.load(run / "config.yaml")
    config.research.rewriting = {"think": False}
    OmegaConf.save(config, run / "config.yaml")
    measures = {"search/ndcg_at_10": 0.5, "search/original_ndcg": 0.25, "search/recall_at_10": 0.5}
    validated = {
        "val-aux/validation_s/ndcg_at_10/mean@1": 0.5,
        "val-aux/validation_s/original_ndcg/mean@1": 0.2,
    }
    rows = [step_row(step, **measures) for step in (1, 2, 3, 4)]
    write_rows(run, {"step": 0, **validated}, *rows[:3], {**rows[3], **validated, EVALUATED_STEP: 4.0})
    for step, ndcg in ((0, 0.3), (4, 0.9)):
        write_episodes(run, "test", step, *(rewriting(n, ndcg if n else 0.0, step) for n in range(4)))
    return run


def test_lines_and_table_tell_ndcg(run_dir):
    printer = StepPrinter(run_dir, 4, GuardConfig(), headline_of(run_dir))
    row = step_row(5, **{"search/ndcg_at_10": 0.5, "search/original_ndcg": 0.25})
    del row["search/em"], row["search/searches"]
    write_rows(run_dir, {**row, "val-aux/validation_s/ndcg_at_10/mean@1": 0.625})
    step, held_out = printer.lines()
    assert "nDCG@10 0.500  question 0.250  reward" in step and len(step) <= 120
    assert held_out == "  validation at step 5: nDCG@10 s 0.625"
    (result,) = table_rows(run_dir)
    assert result.cells()[:3] == ("test_s", "4", "0.250")
    # Means of 0, .3, .3, .3 and 0, .9, .9, .9; half an interval is 1.96 standard errors, .075 and .225.
    assert result.cells()[3:5] == ("0.225 [0.078, 0.372]", "0.675 [0.234, 1.000]")
    assert result.cells()[6] == "8.0 -> 8.0"
    assert "nDCG@10 of the question" in as_text(header_of(REWRITINGS), [result.cells()])


def test_texts_that_could_not_be_scored_are_told(run_dir):
    assert failures_warning(table_rows(run_dir), REWRITINGS) == ""
    write_episodes(run_dir, "test", 4, rewriting(1, 0.0, 4, failed=1.0))
    assert "1 texts of these episodes could not be scored" in failures_warning(
        table_rows(run_dir), REWRITINGS
    )
    assert [failed_share({"search/scoring_failed": share}) >= 1 for share in (1.0, 0.99)] == [True, False]
    assert list(check_guards([step_row(1, **{"search/scoring_failed": 0.01})], GuardConfig())) == [
        "scoring_failures"
    ]


def test_report_shows_the_curve_and_episodes(run_dir):
    page = write_training_report(run_dir).read_text()
    for text in (
        "nDCG@10 on held-out questions, by source",
        "the questions themselves",
        "0.225 [0.078, 0.372]",
    ):
        assert text in page
    assert "better than the question before and after" in page and "no better before and after" in page
    assert "of these wanted: 1" in page and "Gold answers" not in page


def test_viewer_takes_such_trajectories():
    trajectory = rewriting(1, 0.9, 4)
    row = make_row(trajectory, Protocol(), file="f", line=1, offset=0, split="test")
    assert (row.right, row.question, row.source) == (None, "Question 1?", "test_s")
    assert row.reward == pytest.approx(0.65)
    view = trajectory_view(row, trajectory, Protocol())
    assert view["metrics"]["ndcg_at_10"] == 0.9 and view["reward_reason"] == "retrieval_gain"
    assert view["metadata"]["text"] == "other words" and view["gold"] is None
