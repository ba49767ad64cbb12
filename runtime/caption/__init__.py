"""Captions photos on the CPU: LightCap-style captioners, and encoder-decoder ones."""
