"""A run applied to new images: list the work, read, predict, write."""
