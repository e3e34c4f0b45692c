"""Image encoders that the family ViT computes: a file per kind of checkpoint, what they pool, and their positions."""
