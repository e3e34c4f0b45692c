"""The ranks of a job: how the launcher started them, what they say beside the forward pass, who died or hangs.

Knows nothing of models, files and decks.
"""
