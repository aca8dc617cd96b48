"""Evaluation: questions through a method and an engine to trajectories, and those to figures with intervals.

Start reading at run.py; `python -m research.evaluation --help` shows the commands.
"""
