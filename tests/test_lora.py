"""Low-rank adapters on a CPU: the rollout gets whole weights with the adapters in them, unrounded."""

from pathlib import Path

import pytest
import torch
from test_cpu_engine import make_model
from test_cpu_engine import one_rank as one_rank
from transformers import AutoModelForCausalLM
from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig

from benchmarks.references.model import byte_tokenizer
from research.training.verl.cpu.engine import CPUFSDPEngine

SDPA = {"override_config": {"attn_implementation": "sdpa"}, "enable_gradient_checkpointing": False}


@pytest.fixture
def policy(tmp_path: Path) -> str:
    """A tiny model in a folder."""
    make_model(vocab_size=300).save_pretrained(tmp_path / "policy")
    byte_tokenizer().save_pretrained(tmp_path / "policy")
    return str(tmp_path / "policy")


@pytest.fixture
def engine(one_rank: None, policy: str) -> CPUFSDPEngine:
    """Of a model whose adapters have learned something."""
    precision = {"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"}
    model = HFModelConfig(path=policy, use_remove_padding=False, lora_rank=4, lora={"merge": True}, **SDPA)
    sharding = FSDPEngineConfig(
        strategy="fsdp2", model_dtype="fp32", mixed_precision=precision, use_torch_compile=False
    )
    engine = CPUFSDPEngine(model, sharding, FSDPOptimizerConfig(lr=1e-3, total_training_steps=1), None)
    engine.initialize()
    torch.manual_seed(0)
    for name, weight in engine.module.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    return engine


def test_the_rollouts_weights_hold_the_adapters(engine: CPUFSDPEngine, policy: str, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
    ids = torch.arange(3, 40)[None]
    expected = engine.module(input_ids=ids).logits
    assert not torch.allclose(expected, base(input_ids=ids).logits, atol=1e-2), "the adapters do nothing"
    weights, adapters = engine.get_per_tensor_param()
    assert adapters is None
    base.load_state_dict({name: weight.clone() for name, weight in weights}, strict=False)
    torch.testing.assert_close(base(input_ids=ids).logits, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(engine.module(input_ids=ids).logits, expected)
