"""Runs a model: engines, generation, sampling, KV cache and the memory planner."""
