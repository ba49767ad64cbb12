"""The engine for ordinary GGUF files: stock llama.cpp, with Penstock deciding what is in memory."""
