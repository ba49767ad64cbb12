"""ONNX: export from torch, quantization on onnxruntime's writers, mixed precision."""
