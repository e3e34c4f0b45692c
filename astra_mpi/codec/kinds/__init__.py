"""The codec kinds, one class each: what a vector's codes stand for. `codec.config.KINDS` is their table; nothing
outside a kind's file asks for it by its name.
"""
