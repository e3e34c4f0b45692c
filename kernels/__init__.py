"""The hot loops, with the same names and signatures in every backend (docs/explanation/architecture.md, Kernels)."""
