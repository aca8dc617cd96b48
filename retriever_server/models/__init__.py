"""Models: the encoder, its OpenVINO form, and the reranker."""
