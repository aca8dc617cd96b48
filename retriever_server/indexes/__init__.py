"""Index kinds, one file each, of one class with `count`, `dimension`, `vectors(rows)` and `search(...)`."""
