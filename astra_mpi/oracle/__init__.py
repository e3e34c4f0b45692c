"""The serial oracle, float64, by masks, and `verify`, which holds ranks against it.

Written independently of the code that it checks: it imports nothing of strategies, wire and attention.
"""
