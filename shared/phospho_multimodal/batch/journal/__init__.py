"""The job journal: every image and every attempt, in one SQLite file that survives a kill.

`batch` and `ray` may import this folder.
"""
