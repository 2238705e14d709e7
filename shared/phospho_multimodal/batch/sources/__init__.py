"""Where the images of a batch come from: folders, patterns, tables, archives, lists, a pipe.

`batch` and `ray` may import this folder.
"""
