"""BRIGHT: questions that are hard to search for, as they stand, rewritten by a model or by others.

Start at run.py; `python -m research.evaluation.bright --help` teaches the commands. docs/bright.md says what
the figures mean.
"""
