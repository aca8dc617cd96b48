"""All that touches veRL: the agent loop that adapts the search loop, the trainer, the CPU platform, the
launch.
"""
