"""Everything that touches veRL."""
