"""The HTML report about a job.

`batch` may import this folder.
"""
