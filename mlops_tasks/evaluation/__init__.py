"""Measuring a model by running what it writes: `generate` writes programs, `judge` runs them, `metrics` compares models."""
