"""Brings weights from storage: GGUF and bundle readers, direct reads, the neuron window, the probe."""
