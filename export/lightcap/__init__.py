"""LightCap-style captioners (arXiv 2212.08985): the network in torch, and its export."""
