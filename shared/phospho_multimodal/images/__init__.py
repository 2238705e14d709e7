"""Image files: reading, checking and preparing them, montages, tiles, and fetching URLs.

Every folder above `spending/` may import this one. The first image that is decoded loads Pillow.
"""
