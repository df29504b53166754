"""GGUF: llama.cpp's format, written in one pass from a stream of float32 tensors."""
