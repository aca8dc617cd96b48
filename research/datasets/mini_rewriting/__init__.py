"""A generated world for query reasoners on CPUs."""
