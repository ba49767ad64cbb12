"""Reads static and moving Gaussian splats, of every common format, into one model in memory."""
