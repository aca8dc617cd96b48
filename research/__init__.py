"""Train and evaluate language models that search: protocol, search loop, rewards, training on veRL."""

__version__ = "0.1.0"
