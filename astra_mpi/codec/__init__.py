"""Vector quantisation: codebooks, how they are fitted and searched, and tables of projected entries.

Arrays in, codes out. Knows nothing of MPI and files.
"""
