"""Prompt-based tool calls and structured answers: writing the prompt, reading the answer.

The adapters may import this folder. It needs no network.
"""
