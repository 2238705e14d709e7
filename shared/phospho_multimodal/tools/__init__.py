"""Prompt-based tool calls and structured answers: writing the prompt, reading the answer.

The adapters and the folders above may import this folder. It needs no network.
"""
