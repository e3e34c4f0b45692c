"""Image encoders that the family ViT computes: a file per kind of checkpoint, what they pool, and their positions.

A reader says how a checkpoint becomes a `ViTConfig` and weights. It knows nothing of how the pass is computed.
"""
