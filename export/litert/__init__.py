"""TFLite models: made from torch, repaired, quantized, each with a report."""
