"""Bench: puts load on any server of the known wire formats and measures it."""
