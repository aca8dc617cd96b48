"""Building: what an index directory holds, how it is opened, and how it is made from a corpus."""
