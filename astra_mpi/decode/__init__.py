"""Decoding: what ranks keep of a prefill, and how they make token after token from it (docs/explanation/decode.md)."""
