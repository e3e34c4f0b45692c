"""Links and clocks: a network as described or emulated, what is lost or late on it, units of time and speed.

Arithmetic on times and bytes. It sends nothing.
"""
