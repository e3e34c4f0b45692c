"""A model whose blocks lie on stages of ranks (docs/explanation/grid.md).

What a stage has of a model, and passes and text over all stages.
"""
