"""Questions, passages and rewriting tasks: read and checked, fetched by name, or generated."""
