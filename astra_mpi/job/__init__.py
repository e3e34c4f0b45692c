"""The batch job: tasks, parts, lock, resume, results, summary; and its log and progress.

Everything that must survive a kill is decided here. The forward pass knows nothing of it.
"""
