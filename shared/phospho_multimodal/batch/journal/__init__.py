"""The job journal: every image and every attempt, in one SQLite file that survives a kill.

`resume.py` continues a job.

`batch` and `ray` may import this folder.
"""
