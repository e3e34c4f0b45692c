"""Many measurements from one deck: points, each kept in a file, then one result.

Starts other programs and reads what they wrote; it measures nothing itself.
"""
