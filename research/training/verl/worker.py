"""``actor_rollout_ref.model.external_lib``: veRL imports this in each process that builds the model."""

import os

import research.training.verl.packed_attention  # noqa: F401  (registers packed_sdpa)
from research.training.verl import patches

patches.bound_weight_sending()
if os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu":
    import research.training.verl.cpu.engine  # noqa: F401  (registers the engine)
