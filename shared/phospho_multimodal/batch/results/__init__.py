"""What a batch leaves behind: one row for each input, and a manifest.

`batch` and `ray` may import this folder.
"""
