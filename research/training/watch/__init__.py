"""What is measured during a run, and shown of it."""
