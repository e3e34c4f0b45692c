"""Other people's checkpoints, and random models of a named shape -> what a model file holds.

Reads folders with care: what would change an answer is honoured or refused by name. Knows nothing of jobs.
"""
