"""What an evaluation leaves: predictions, scores, tables and the report."""
