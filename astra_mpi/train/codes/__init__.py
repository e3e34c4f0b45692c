"""Codes under training: quantisers and predictors with gradients, and what far ranks see of a token through them.

Arrays are PyTorch's. `Codebooks` begins with a codec, and gives the one that it has become.
"""
