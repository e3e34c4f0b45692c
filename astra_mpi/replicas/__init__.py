"""Replicas of a model that compute different sequences (docs/explanation/grid.md).

A batch shared out among them, and their reports as one.
"""
