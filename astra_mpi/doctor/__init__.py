"""What these ranks, machines and links can do, measured, and the cure for what is wrong.

Facts first (placement, probes), then findings from facts. Knows nothing of jobs but how they describe a host.
"""
