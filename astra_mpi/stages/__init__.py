"""A model whose blocks lie on stages of ranks (docs/explanation/grid.md): what a stage holds, and passes over all."""
