"""Captioners of Hugging Face folders as ONNX graphs: `penstock export captioner`."""
