"""A page to look at trajectories: ``python -m research.viewer RUN_OR_FILE``; see __main__.py."""
