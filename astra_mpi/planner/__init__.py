"""Which strategy, cut, codec and way of decoding is fastest on given ranks and links, predicted and in words.

Chooses by `costs`. The forward pass knows nothing of it.
"""
