"""What strategies and decoding cost: operations and bytes counted, then seconds at given speeds.

Arithmetic only: no MPI, no clock, nothing is measured here. The planner chooses by it, the cut and `decode = "auto"` too.
"""
