"""The clients that a user makes: `PhosphoClient` with threads, `AsyncPhosphoClient` with await.

The adapters, `batch`, `ray` and `cli` may import this folder.
"""
