"""What users have as input: texts, images, token arrays, read batch by batch and cut into shards.

Gives a `Source` of numbered items. Knows nothing of ranks and results.
"""
