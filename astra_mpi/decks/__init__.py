"""TOML decks -> validated dataclasses. An unknown key is answered with the nearest one.

Says what can be set and what it means. Knows nothing of how it is carried out.
"""
