"""What codes are to a strategy: when they come, and how they become far tokens' keys and values.

Knows a model's blocks, the codec and the layout of a pass, not who sends and waits: that is `Astra`'s to say.
"""
