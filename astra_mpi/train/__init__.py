"""Noise-augmented training (docs/explanation/training.md). Needs PyTorch, the extra `train`; nobody else imports it."""
