"""The work of a batch: images are prepared on threads, requests run on one event loop.

`batch` and `ray` may import this folder.
"""
