"""Which parts of an image a prediction rests on, and which images are out of distribution."""
