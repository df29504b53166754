"""Our own ONNX writer: the decoder's graph, and its weights streamed a few rows at a time."""
