"""Attention with both products in bfloat16, and scores that never leave the cache."""
