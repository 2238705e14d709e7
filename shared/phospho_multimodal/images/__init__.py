"""Images: where their bytes come from, what is in them, and what is sent.

Everything above `spending/` may import this folder. Only `decode`, `opening` and their neighbors
load Pillow, and only when an image has to be decoded.
"""
