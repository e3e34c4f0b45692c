"""Where arrays live and what computes on them: kernels, GPUs, threads, buffers that outlive a pass, narrow weights.

One code for NumPy and CuPy. Knows nothing of models, codecs and MPI's exchanges.
"""
