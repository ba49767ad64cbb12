"""Language models as quantized GGUF files for llama.cpp, of any architecture."""
