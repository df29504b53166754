"""Put quantized LoRA models on edge devices: merge, quantize, convert, measure, prove."""

__version__ = "0.1.0"
