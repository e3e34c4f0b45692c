"""New tokens after a prompt: `Model.generate`, a step per token, alone on one rank or merged over all.

Asks of the engine what `prefill.Engine` says, and does not import it.
"""
