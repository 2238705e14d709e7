"""Images: what was handed over, what its bytes say, its pixels, and what is sent."""
