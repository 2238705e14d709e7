"""The content of a conversation: content blocks, turns, and which images are sent for them.

The adapters and everything above `images/` in the core may import this folder.
"""
