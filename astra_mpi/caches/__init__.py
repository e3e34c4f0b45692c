"""What decoding keeps of a prefill: keys and values as they are, or as codes, on the host or in device memory.

Strategies fill a cache during the forward pass, decoding reads it. It knows neither of them.
"""
