"""The GPU profile on a CPU: two steps of what is not CUDA in it, on two FSDP ranks."""

from pathlib import Path

import pytest
from stack import RecipeRun
from test_examples import convert

pytestmark = [pytest.mark.launch, pytest.mark.slow, pytest.mark.timeout(1800)]
WORDS = ("--index", "bm25", "trainer.val_before_train=false", "trainer.test_freq=-1", "research.keep=last")


def test_two_steps_of_the_gpu_profile(policy: str, tmp_path: Path) -> None:
    """With a reference policy, two updates a step, and weights that are put aside in between."""
    words = ("--model", policy, *convert(tmp_path / "handbook"), *WORDS)
    mini_batch = "actor_rollout_ref.actor.ppo_mini_batch_size=2"
    with RecipeRun(tmp_path / "run", "--hardware", "rehearsal", *words, mini_batch, alone=True) as run:
        assert run.wait() == 0, run.text()
        run.assert_nothing_left()
    rows = run.step_rows()
    assert list(rows) == [1, 2]
    for row in rows.values():
        assert row["training/rollout_probs_diff_mean"] <= 1e-4
        assert row["actor/kl_loss"] >= 0 and row["actor/entropy"] > 0
    assert (tmp_path / "run/policy/model.safetensors").exists()
