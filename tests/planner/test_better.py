"""What is suggested in place of a quantization that was not good enough."""

from __future__ import annotations

from edgeadapt.devices import DeviceProfile
from edgeadapt.planner import next_better
from tests.planner.test_choice import LLAMA_8B, with_ram


def test_the_next_better_quantization_is_the_smallest_that_fits() -> None:
    def better(quantization: str, *profiles: DeviceProfile, size: float = 1.0) -> str | None:
        return next_better("gguf", quantization, LLAMA_8B, size_bytes=int(size), profiles=profiles)

    assert better("Q4_0") == "Q4_K_M"
    assert better("Q8_0") == "F16"
    assert better("F32") is None
    roomy, narrow = with_ram("laptop-x86", 64), with_ram("laptop-x86", 11.2)
    assert better("Q4_K_M", roomy) == "Q5_K_M"
    assert better("Q4_0", roomy, narrow) == "Q4_K_M"
    assert better("Q4_K_M", roomy, narrow) is None
    # a quantization that the table lacks has the bits of its file
    assert better("Q3_K_M", size=LLAMA_8B.parameters * 3.9 / 8) == "Q4_0"
    assert better("Q5_1", size=LLAMA_8B.parameters * 6.0 / 8) == "Q6_K"
