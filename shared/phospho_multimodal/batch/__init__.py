"""Many pictures, one prompt: described once each, and written down as they are."""
