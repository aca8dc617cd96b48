"""BRIGHT: questions that are hard to search for, as they are or rewritten by a model or by others.

Start reading at run.py; `python -m research.evaluation.bright --help` shows the commands. docs/bright.md says
what the figures mean.
"""
