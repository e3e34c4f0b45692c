"""CUDA kernels on the CPU, and a stand-in for CuPy that runs them: what can be checked without a GPU."""
