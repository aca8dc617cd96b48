"""The references' own loops and rewards beside ours, with a scripted model: see benchmarks/reference.py."""
