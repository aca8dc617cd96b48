"""What is measured during a run, and how people see it."""
