"""One file per sub-command: its options, what it calls, what it prints. `cli.py` finds them by themselves."""
