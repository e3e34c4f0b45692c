"""The ranks of a job: how the launcher started them, what they tell each other beside the forward pass, and how one that
dies or hangs is named.

Knows nothing of models, files and decks.
"""
