"""All MPI of a forward pass: exchanges, their messages, and bytes and seconds counted at the call.

Nobody else talks MPI there. It carries bytes and does not know what they mean.
"""
