"""Formats on disk: read with care, written whole or not at all, with where they came from.

Model files, codebook files and HDF5 itself. Knows what a model and a codec are, not how they are used.
"""
