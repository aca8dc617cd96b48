"""The retrieval service: a corpus and its index behind HTTP, in the wire formats that agents use.

It stands alone: agents reach it over HTTP only, and nothing here imports them. From a corpus to answers:

    python -m retriever_server build corpus.jsonl indexes/my_corpus
    python -m retriever_server serve indexes/my_corpus --port 8000

Imports point downwards: http -> serving -> building -> indexes, models -> corpus, errors.
"""
