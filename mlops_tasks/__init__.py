"""Idempotent stages that score, train, evaluate and promote code language models."""

__version__ = "0.1.0"
