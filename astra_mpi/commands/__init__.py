"""One file per sub-command: its options, what it calls, what it prints. `cli.py` finds them by themselves.

Decides nothing that the library should know: whatever a command does can be called without it.
"""
