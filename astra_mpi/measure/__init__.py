"""Measured runs: bench, their charts, verdict and HTML page; sweeps of many measurements in `sweep`.

Uses all below it and is used by commands only.
"""
