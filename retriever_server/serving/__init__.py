"""Serving: from queries to passages, in batches, with a cache, on one machine or on a cluster."""
