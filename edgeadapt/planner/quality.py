"""What a quantization is expected to cost in quality, before it is measured."""

from __future__ import annotations

from dataclasses import dataclass

REFERENCE = "llama-quantize --help: perplexity of Llama 3 8B (6.2331 at F16) by quantization"

_RISE_AT_8B = {
    ("gguf", "F32"): 0.0,
    ("gguf", "F16"): 0.0,
    ("gguf", "BF16"): 0.0001,
    ("gguf", "Q8_0"): 0.0026 / 6.2331,
    ("gguf", "Q6_K"): 0.0217 / 6.2331,
    ("gguf", "Q5_K_M"): 0.0569 / 6.2331,
    ("gguf", "Q5_K_S"): 0.1049 / 6.2331,
    ("gguf", "Q5_1"): 0.1062 / 6.2331,
    ("gguf", "Q5_0"): 0.1316 / 6.2331,
    ("gguf", "Q4_K_M"): 0.1754 / 6.2331,
    ("gguf", "Q4_K_S"): 0.2689 / 6.2331,
    ("gguf", "Q4_1"): 0.4511 / 6.2331,
    ("gguf", "Q4_0"): 0.4685 / 6.2331,
    ("gguf", "Q2_K"): 3.5199 / 6.2331,
    ("onnx", "fp32"): 0.0,
    ("onnx", "fp16"): 0.0,
    ("onnx", "int8"): 0.002,
    ("onnx", "int4"): 0.06,
}
"""Rise of perplexity, relative. GGUF as REFERENCE says; ONNX types are estimates from how their
blocks compare with ggml's."""

_SMALLER_LOSE_MORE = 0.25
"""Exponent of (8e9 / parameters). Measured on SmolLM2-135M, 2.8 times the rise at 8B."""
_SPREAD = 1.7
"""Either side; tasks, adapters and calibration differ."""


@dataclass(frozen=True)
class QualityLoss:
    """Expected relative rise of perplexity: bounds, an estimate always."""

    low: float
    high: float

    @property
    def middle(self) -> float:
        """To rank by."""
        return float((self.low * self.high) ** 0.5)

    def __str__(self) -> str:
        if self.high < 0.002:
            return "~ <0.2%"
        return f"~ +{100 * self.low:.1f}-{100 * self.high:.1f}%"


def expected_loss(format: str, quantization: str, parameters: int) -> QualityLoss | None:
    """What a quantization costs a model of this size; None where nothing is known.

    `edgeadapt evaluate` measures it.
    """
    rise = _RISE_AT_8B.get((format, quantization))
    if rise is None:
        return None
    scaled = rise * max(1.0, 8e9 / max(parameters, 1)) ** _SMALLER_LOSE_MORE
    return QualityLoss(scaled / _SPREAD, scaled * _SPREAD)
