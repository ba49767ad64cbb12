"""Runs models that take arrays and give arrays: ONNX and TFLite files."""
