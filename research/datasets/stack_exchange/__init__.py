"""Rewriting tasks made of Stack Exchange's public dumps."""
