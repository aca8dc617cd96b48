"""BRIGHT: questions that are hard to search for, unchanged or rewritten, by a model or in a file.

Start reading at run.py; `python -m research.evaluation.bright --help` shows the commands. docs/bright.md says
what the figures mean.
"""
