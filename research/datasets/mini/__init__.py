"""A generated world for CPUs: multi-hop questions, passages, an encoder, and a policy's cold start."""
