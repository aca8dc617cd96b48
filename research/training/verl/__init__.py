"""All that touches veRL."""
