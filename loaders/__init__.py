"""Brings weights from storage: bundle and GGUF readers, direct reads, the probe."""
