"""Training of codebooks and of whole models with noise-augmented quantisation. The only room that needs PyTorch.

Gives codebook and model files. Nothing else imports it but its command.
"""
