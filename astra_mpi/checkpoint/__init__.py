"""A Hugging Face folder read with care: its configuration, tensors, and which of its settings change an answer.

Every key is honoured, known to change nothing, or refused by name. Knows nothing of families and of model files.
"""
