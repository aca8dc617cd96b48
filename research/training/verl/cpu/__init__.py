"""What veRL needs to run on a CPU: a platform, an engine, a way to take new weights."""
