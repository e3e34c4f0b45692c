"""What strategies and decoding cost: operations and bytes counted, then seconds at given speeds.

Arithmetic only: no MPI, no clock, nothing is measured. The planner, the cut and `decode = "auto"` choose by it.
"""
