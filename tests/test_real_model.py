"""A real language model through the whole stack: one step of the recipe with SmolLM2-135M out of its wheel.

Cold start, veRL, vLLM, export and evaluation, without a network for the questions: those of the mini world.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from retriever_process import serving
from stack import ROOT, RecipeRun
from transformers import AutoModelForCausalLM, AutoTokenizer

from research.training.run.small_policy import SMOLLM2
from research.training.run_files import read_trajectories, trajectory_path
from research.training.sizes.model import model_sizes

pytestmark = [pytest.mark.launch, pytest.mark.slow, pytest.mark.timeout(1800)]
# In float32: a policy that has hardly begun to learn has no sharp probabilities, and bfloat16 blurs them
SINGLE = [
    "actor_rollout_ref.rollout.dtype=float32",
    "actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype=fp32",
]
AGREEMENT = 1e-4


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Iterator[RecipeRun]:
    """A run of one step, from a cold start of half a minute, whose test is four questions."""
    folder = tmp_path_factory.mktemp("real")
    words = ["--policy", "smollm2", "--steps", "1", "--cold-start-seconds", "30", "--seed", "3"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        short = ["data.max_response_length=512", "research.controls=[]", "data.train_batch_size=2"]
        short += ["trainer.val_before_train=false", "trainer.test_freq=-1", "research.keep=last"]
        with RecipeRun(folder / "run", *words, *short, *SINGLE, alone=True) as recipe:
            assert recipe.wait() == 0, recipe.text()
            yield recipe
            recipe.assert_nothing_left()


def test_it_says_that_there_is_no_network_and_trains_on_other_questions(run: RecipeRun) -> None:
    text = run.text()
    assert "MuSiQue cannot be had" in text and "the mini world's questions" in text
    shown = (run.run_dir / "cold_start/parts/demonstrated.questions.jsonl").read_text().splitlines()
    assert not {json.loads(line)["id"] for line in shown} & set(run.question_ids(1))


def test_its_size_is_known_before_it_is_fetched(smollm2: Path) -> None:
    assert model_sizes(SMOLLM2) == model_sizes(str(smollm2))


def test_rollout_and_actor_agree(run: RecipeRun) -> None:
    assert run.step_rows()[1]["training/rollout_probs_diff_mean"] <= AGREEMENT


def test_the_rollouts_log_probs_are_those_of_transformers(run: RecipeRun) -> None:
    """Of the policy that sampled the first step, the cold-started one, in float32."""
    policy = AutoModelForCausalLM.from_pretrained(run.run_dir / "cold_start/policy", dtype=torch.float32)
    differences = []
    for trajectory in list(read_trajectories(trajectory_path(run.run_dir, 1, "train")))[:4]:
        ids = torch.tensor([trajectory.prompt_ids + trajectory.response_ids])
        with torch.no_grad():
            log_probs = policy(ids).logits[0, :-1].log_softmax(-1)
        start, mask = len(trajectory.prompt_ids) - 1, torch.tensor(trajectory.response_mask).bool()
        own = log_probs[start:].gather(1, ids[0, start + 1 :, None])[:, 0][mask]
        theirs = torch.tensor(trajectory.response_log_probs)[mask]
        differences.append((own.exp() - theirs.exp()).abs())
    assert torch.cat(differences).mean() <= AGREEMENT


def test_the_exported_policy_is_evaluated_in_vllm(run: RecipeRun, tmp_path: Path, word_index: Path) -> None:
    """By the evaluation's own command line, with the prompt and protocol of its training."""
    policy = run.run_dir / "policy"
    assert AutoTokenizer.from_pretrained(policy).eos_token == "<|im_end|>"
    rows = [{"id": str(i), "question": f"Who wrote book {i}?", "golden_answers": ["x"]} for i in range(3)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with serving(word_index) as (_, url):
        command = [sys.executable, "-m", "research.evaluation", "run", "--model", str(policy)]
        command += [
            "--datasets",
            str(tmp_path / "q.jsonl"),
            "--retriever",
            url,
            "--out",
            str(tmp_path / "out"),
        ]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    results = json.loads((tmp_path / "out/metrics.json").read_text())["results"]
    assert results[0]["questions"] == 3
