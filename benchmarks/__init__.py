"""Benchmarks: one table each, peers in the same run, bars with --check. See README.md."""
