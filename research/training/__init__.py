"""Training with GRPO on veRL: the recipes (run/), the adapters to veRL (verl/), what people see (watch/)."""
