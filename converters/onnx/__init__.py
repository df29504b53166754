"""ONNX: graphs for onnxruntime and onnxruntime-genai, made by onnxruntime-genai's builder."""
