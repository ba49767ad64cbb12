"""Compresses 4D Gaussian splats as OMG4 does (arXiv 2510.03857), each stage with its own switch.

    scores -> sampling -> pruning -> merging -> appearance -> sub-vector quantization -> .psplat
                   each followed by refinement against the views

`pipeline.compress` runs them. What is the paper's and what is ours: docs/omg4.md.
"""
