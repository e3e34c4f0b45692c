"""What codes are to a strategy: when they come, and how they become far tokens' keys and values.

Knows a model's blocks, the codec and the layout of a pass, not what a rank sends: that is `Astra`'s to say.
"""
