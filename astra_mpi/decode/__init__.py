"""Decoding: what ranks keep of a prefill, and how they make one token after another from it (docs/decode.md)."""
