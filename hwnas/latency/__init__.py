"""Latency: the target, timing in pairs, the table of operator costs, and the predictor on it."""

from hwnas.latency.target import Budget, Target

__all__ = ["Budget", "Target"]
