"""FedMobile-style learning: few labels, much that is unlabelled, chunk after chunk of time.

FedMobile (Dong et al., arXiv 2312.12666) has published its goals and keywords, federated,
incremental, knowledge distillation, consistency regularization, but neither losses nor code.
What is here is a reconstruction from these keywords, and is called FedMobile-style everywhere.
"""
