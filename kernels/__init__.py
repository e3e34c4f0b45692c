"""The hot loops, with the same names and signatures in every backend (docs/architecture.md, Kernels)."""
