"""Noise-augmented training (docs/training.md). Needs PyTorch, the extra `train`; nothing else imports this package."""
