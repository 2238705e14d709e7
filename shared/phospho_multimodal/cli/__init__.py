"""The command `phospho-multimodal` and its subcommands.

Nothing imports this folder.
"""
