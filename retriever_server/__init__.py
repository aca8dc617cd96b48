"""The retrieval service: a corpus and its dense index behind HTTP, in the wire formats that agents speak.

It is a service of its own: the agent reaches it over HTTP alone, and nothing here imports the agent.
From a corpus to answers:

    python -m retriever_server build corpus.jsonl indexes/my_corpus
    python -m retriever_server serve indexes/my_corpus --port 8000
"""
