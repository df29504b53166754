"""What can be asked of an ONNX export, and what it comes to for one model.

Whatever changes the numbers is settled here and written into the artifact, also where it is the
tools' default, so that an artifact says what was done to it and a new tool does not change it
silently.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from edgeadapt.errors import InputError, UnsupportedError

if TYPE_CHECKING:
    from edgeadapt.devices import DeviceProfile
    from edgeadapt.weights import LowRankUpdate

QUANTIZATIONS = ("fp32", "fp16", "int8", "int8-dynamic", "int4")
"""`int8` and `int4` keep weights in blocks (MatMulNBits); `int8-dynamic` also computes in int8,
with one scale for each column of weights and one for each activation tensor (MatMulInteger)."""

ALGORITHMS = ("rtn", "rtn_mixed", "k_quant", "k_quant_mixed", "hqq", "hqq_mixed")
"""How a block's scale and zero point are found. rtn: from its range. k_quant: llama.cpp's search
for the least weighted square error. hqq: half-quadratic quantization (Badri and Shaji 2023), whose
zero points are fractions. _mixed: the head and the most sensitive layers in 8 bits, as llama.cpp's
mixed types do: the first and last eighth of the layers and every third one between."""

BLOCK_SIZES = (16, 32, 64, 128, 256)

ACCURACY_LEVELS = {0: "unset", 1: "float32", 2: "float16", 3: "bfloat16", 4: "int8"}
"""What MatMulNBits may round activations to."""

PRESETS = ("arm64", "avx2", "avx512_vnni")
"""Instruction sets that int8-dynamic is made for."""

_DEFAULT_PRESET = "avx2"
"""Unsigned weights: signed ones saturate on x86 without VNNI, which costs several times the error
of the rounding; on Arm both are right, and signed ones faster on smaller cores."""

DEFAULT_ALGORITHM = {"int4": "rtn_mixed", "int8": "rtn"}
"""int4: none loses less at its size on the demo's held-out text, k_quant_mixed as much
(benchmarks/onnx_int4.py)."""

_BLOCK_SIZE = 32
_ACCURACY_LEVEL = 4
"""int8 activations in blocks, which is what the fast CPU kernels take."""


@dataclass(frozen=True)
class SeparateAdapter:
    """An adapter that becomes a file of its own beside the graph."""

    name: str
    updates: tuple[LowRankUpdate, ...]


@dataclass(frozen=True)
class OnnxOptions:
    """Options of the ONNX converter; None stands for the default of the quantization."""

    exporter: str | None = None
    """What writes the graph: `stream`, `builder` or `optimum`; None: what knows the family."""
    algorithm: str | None = None
    block_size: int | None = None
    """Weights of a row that share a scale."""
    symmetric: bool | None = None
    """Without zero points; None: with them wherever the writer can pack them."""
    accuracy_level: int | None = None
    preset: str | None = None
    """Of int8-dynamic: one of `PRESETS`."""
    session: Mapping[str, int | str] = field(default_factory=lambda: MappingProxyType({}))
    """Session options to write into genai_config.json: `intra_op_num_threads`, and entries such
    as `session.intra_op.allow_spinning`."""

    adapters: tuple[SeparateAdapter, ...] = ()
    """The graph takes these, and others like them, at run time; only of the stream exporter."""

    def __post_init__(self) -> None:
        for what, value, known in (
            ("algorithm", self.algorithm, ALGORITHMS),
            ("block size", self.block_size, BLOCK_SIZES),
            ("accuracy level", self.accuracy_level, tuple(ACCURACY_LEVELS)),
            ("instruction set", self.preset, PRESETS),
        ):
            if value is not None and value not in known:
                raise InputError(
                    f"ONNX has no {what} {value}; choose one of {', '.join(map(str, known))}"
                )


@dataclass(frozen=True)
class Settings:
    """How the weights of one model are quantized; fields that do not apply are None."""

    quantization: str
    shared_embeddings: bool
    """The embedding reads the head's weights."""
    algorithm: str | None = None
    mixed: bool = False
    """Head and sensitive layers in 8 bits."""
    block_size: int | None = None
    symmetric: bool | None = None
    accuracy_level: int | None = None
    preset: str | None = None

    @property
    def bits(self) -> int:
        """Of most weights."""
        return {"int4": 4, "int8": 8, "int8-dynamic": 8, "fp16": 16}.get(self.quantization, 32)

    def record(self) -> dict[str, Any]:
        """What applies, for the artifact's lineage."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def settle(
    quantization: str, options: OnnxOptions, *, tied: bool, widths: Collection[int] = ()
) -> Settings:
    """Fill in what was left open, and refuse what does not go together.

    Args:
        quantization: one of `QUANTIZATIONS`.
        options: what was asked for.
        tied: whether the model's head is its embedding.
        widths: lengths of the rows of its matrices, where the writer packs 4-bit zero points only
            in pairs.

    Raises:
        InputError: the quantization is unknown, or an option does not belong to it.
        UnsupportedError: zero points were asked for that the format cannot hold.
    """
    if quantization not in QUANTIZATIONS:
        raise InputError(
            f"ONNX has no quantization {quantization!r}; choose one of {', '.join(QUANTIZATIONS)}"
        )
    _check_fits(quantization, options)
    if quantization == "int8-dynamic":
        return Settings(quantization, tied, preset=options.preset or _DEFAULT_PRESET)
    if quantization not in DEFAULT_ALGORITHM:
        return Settings(quantization, tied)
    chosen = options.algorithm or DEFAULT_ALGORITHM[quantization]
    algorithm = chosen.removesuffix("_mixed")
    block_size = options.block_size or _BLOCK_SIZE
    level = _ACCURACY_LEVEL if options.accuracy_level is None else options.accuracy_level
    mixed = chosen.endswith("_mixed")
    # Zero points of HQQ are fractions, which nobody packs; those of its head are not.
    packed = quantization == "int4" and not (algorithm == "hqq" and mixed)
    odd = packed and any(-(-width // block_size) % 2 for width in widths)
    return Settings(
        quantization,
        tied,
        algorithm=algorithm,
        mixed=mixed,
        block_size=block_size,
        symmetric=_symmetric(algorithm, options, block_size, odd),
        accuracy_level=level,
    )


def sensitive_layers(layers: int) -> list[int]:
    """Layers that mixed types give 8 bits, by llama.cpp's rule (`use_more_bits`, llama-quant.cpp).

    The first and last eighth and every third between; the builder follows it too.
    """
    return [
        layer
        for layer in range(layers)
        if layer < layers / 8 or layer >= 7 * layers / 8 or (layer - round(layers / 8)) % 3 == 2
    ]


def _check_fits(quantization: str, options: OnnxOptions) -> None:
    if options.preset is not None and quantization != "int8-dynamic":
        raise InputError(f"an instruction set is chosen for int8-dynamic, not for {quantization}")
    asked = {
        "--algorithm": options.algorithm,
        "--block-size": options.block_size,
        "--symmetric": options.symmetric,
        "--accuracy-level": options.accuracy_level,
    }
    given = [name for name, value in asked.items() if value is not None]
    if given and quantization not in DEFAULT_ALGORITHM:
        raise InputError(
            f"{given[0]} is for {' and '.join(sorted(DEFAULT_ALGORITHM))}; "
            f"{quantization} has no blocks of weights"
        )
    if quantization == "int8" and options.algorithm not in (None, "rtn", "k_quant"):
        raise InputError(f"--algorithm {options.algorithm} is for int4; int8 has rtn and k_quant")


def _symmetric(algorithm: str, options: OnnxOptions, block_size: int, odd: bool) -> bool:
    """Whether zero points are left out.

    onnxruntime's quantizers pack 4-bit zero points two to a byte, and fail on rows with an odd
    number of them; its kernels do not.
    """
    if algorithm != "rtn":
        if options.symmetric:
            raise InputError(f"{algorithm} always has zero points; --symmetric is for rtn")
        if odd:
            raise UnsupportedError(
                f"{algorithm} cannot pack the zero points of this model here: some rows have an "
                f"odd number of blocks of {block_size}; choose another --block-size or --exporter, "
                "or rtn"
            )
        return False
    if options.symmetric is False and odd:
        raise UnsupportedError(
            "this model's zero points cannot be packed: some rows have an odd number of blocks of "
            f"{block_size}; choose another --block-size or --exporter, or --symmetric"
        )
    return odd if options.symmetric is None else options.symmetric


def for_device(options: OnnxOptions, profile: DeviceProfile, quantization: str) -> OnnxOptions:
    """Add what a device's profile says: threads, session options, instruction set."""
    session: dict[str, int | str] = {"intra_op_num_threads": int(profile.threads.value)}
    for runtime in profile.runtimes:
        session.update(runtime.session_options)
    options = replace(options, session=session)
    if quantization == "int8-dynamic" and options.preset is None:
        preset = "arm64" if profile.cpu.arch == "aarch64" else "avx2"
        if "avx512_vnni" in profile.cpu.isa:
            preset = "avx512_vnni"
        options = replace(options, preset=preset)
    return options
