"""What every decoder-only family shares: names by gguf's table, hyperparameters by key."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import gguf

from edgeadapt.converters.gguf.mixes import ModelShape
from edgeadapt.converters.gguf.plan import TensorPlan, whole
from edgeadapt.converters.gguf.vocab import add_vocabulary
from edgeadapt.errors import CorruptFileError, UnsupportedError
from edgeadapt.weights import TensorInfo, WeightSource

# Buffers that old checkpoints saved and every runtime computes for itself.
_COMPUTED = (".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq")

_BIAS = re.compile(r"^(?:blk\.\d+\.)?(?P<of>\w+)\.bias$")


class Family:
    """Turns one Hugging Face architecture into llama.cpp's tensors and hyperparameters.

    A subclass states what differs, most of it as the class variables below.
    """

    arch: ClassVar[gguf.MODEL_ARCH]
    classes: ClassVar[tuple[str, ...]]
    """Values of `architectures` in config.json."""
    options: ClassVar[dict[str, str]] = {}
    """Method of `GGUFWriter` -> key of config.json; written where the config has a value."""
    default_theta: ClassVar[float] = 10000.0
    """RoPE base of a config that names none (the default of transformers' config class)."""
    default_head_dim: ClassVar[int | None] = None
    """Likewise `head_dim`; 0 stands for hidden size / heads, None leaves it unsaid."""
    rope_types: ClassVar[frozenset[str]] = frozenset({"default", "linear", "yarn", "dynamic"})
    """RoPE scalings that llama.cpp computes for this family; see also `limits`."""
    biases: ClassVar[frozenset[str]] = frozenset({"attn_q", "attn_k", "attn_v"})
    """Tensors that may have a bias; llama.cpp does not load a file with any other."""
    prefix_space: ClassVar[bool | None] = None
    """What a file with SentencePiece tokens says of a leading space; None: as the tokenizer."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.layers = self._int("num_hidden_layers")
        self.heads = self._int("num_attention_heads")
        self.kv_heads = int(config.get("num_key_value_heads") or self.heads)
        self.hidden = self._int("hidden_size")
        self.vocab_size = self._int("vocab_size")
        self.head_dim = int(
            config.get("head_dim") or self.default_head_dim or self.hidden // self.heads
        )

    @property
    def shape(self) -> ModelShape:
        """What the quantization rules ask."""
        return ModelShape(self.layers, self.heads, self.kv_heads)

    @property
    def rope(self) -> dict[str, Any]:
        """RoPE parameters, as transformers 5 names them, whichever way the config has them.

        Of a model with two kinds of layers, those of the layers with full attention.
        """
        given = self._dict("rope_parameters")
        rope = {
            **self._dict("rope_scaling"),
            **(given.get("full_attention") or given),
        }
        if "type" in rope:
            rope.setdefault("rope_type", rope.pop("type"))
        rope.setdefault("rope_type", "default")
        rope.setdefault("rope_theta", self.config.get("rope_theta") or self.default_theta)
        return rope

    def add_parameters(self, writer: gguf.GGUFWriter) -> None:
        """Write the hyperparameters that llama.cpp reads for this architecture."""
        writer.add_block_count(self.layers)
        writer.add_context_length(self._int("max_position_embeddings"))
        writer.add_embedding_length(self.hidden)
        writer.add_feed_forward_length(self._int("intermediate_size"))
        writer.add_head_count(self.heads)
        writer.add_head_count_kv(self.kv_heads)
        writer.add_layer_norm_rms_eps(self._float("rms_norm_eps"))
        self.add_rope(writer)
        if self.default_head_dim is not None or self.config.get("head_dim"):
            writer.add_key_length(self.head_dim)
            writer.add_value_length(self.head_dim)
        for method, key in self.options.items():
            if self.config.get(key):
                getattr(writer, method)(self.config[key])

    def add_vocabulary(self, writer: gguf.GGUFWriter, folder: Path) -> None:
        """Write every tokenizer key; see `vocab.add_vocabulary`."""
        add_vocabulary(writer, folder, self.vocab_size, self.prefix_space)

    def add_rope(self, writer: gguf.GGUFWriter) -> None:
        """Write the RoPE base and how it is scaled.

        Raises:
            UnsupportedError: the scaling is none that llama.cpp computes.
        """
        rope, kind = self.rope, str(self.rope["rope_type"])
        if kind not in self.rope_types:
            raise UnsupportedError(
                f"RoPE scaling {kind!r} has no equivalent in llama.cpp's "
                f"{gguf.MODEL_ARCH_NAMES[self.arch]!r}; supported are "
                f"{', '.join(sorted(self.rope_types))}"
            )
        if kind == "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(float(rope["factor"]))
        elif kind == "yarn":
            _add_yarn(writer, rope)
        writer.add_rope_freq_base(float(rope["rope_theta"]))

    def plan(self, source: WeightSource) -> list[TensorPlan]:
        """Every tensor of the output file.

        Raises:
            UnsupportedError: a source tensor has no place in llama.cpp's architecture.
        """
        names = gguf.get_tensor_name_map(self.arch, self.layers)
        tied = bool(self.config.get("tie_word_embeddings", False))
        plans = list(self.extra_tensors())
        infos = source.tensors()
        for info in infos.values():
            if info.name.endswith(_COMPUTED) or (tied and info.name == "lm_head.weight"):
                continue
            if self.is_expert(info.name):
                continue
            name = names.get_name(info.name, try_suffixes=(".weight", ".bias"))
            if name is None or not self._has_place(name):
                raise UnsupportedError(
                    f"llama.cpp's {gguf.MODEL_ARCH_NAMES[self.arch]!r} architecture has no place "
                    f"for the tensor {info.name!r}; is this the plain text model?"
                )
            plans.extend(self.plan_tensor(name, info))
        plans.extend(self.plan_experts(infos))
        self._check_complete({plan.name for plan in plans})
        return plans

    def plan_tensor(self, name: str, info: TensorInfo) -> Iterator[TensorPlan]:
        """The output tensors that one source tensor goes into; by default itself."""
        yield whole(name, info.name, info.shape)

    def extra_tensors(self) -> Iterator[TensorPlan]:
        """Tensors that the checkpoint lacks and llama.cpp reads."""
        yield from ()

    def is_expert(self, name: str) -> bool:
        """Whether `plan_experts` takes care of a source tensor."""
        return False

    def plan_experts(self, infos: dict[str, TensorInfo]) -> Iterator[TensorPlan]:
        """The output tensors that hold all experts of a layer."""
        yield from ()

    def _check_complete(self, names: set[str]) -> None:
        """Every layer that the config counts has tensors, and so have both ends of the model."""
        missing = {"token_embd.weight", "output_norm.weight"} - names
        present = {int(match[1]) for name in names if (match := re.match(r"blk\.(\d+)\.", name))}
        missing |= {f"blk.{layer}" for layer in range(self.layers) if layer not in present}
        if missing:
            raise CorruptFileError(
                f"the model is incomplete: config.json counts {self.layers} layers, and there is "
                f"no tensor for {', '.join(sorted(missing)[:3])}; download it again"
            )

    def _has_place(self, name: str) -> bool:
        match = _BIAS.match(name)
        return match is None or match["of"] in self.biases

    def _int(self, key: str) -> int:
        value = self.config.get(key)
        if not isinstance(value, int) or value <= 0:
            raise CorruptFileError(f"config.json has {key} = {value!r}, expected a whole number")
        return value

    def _dict(self, key: str) -> dict[str, Any]:
        value = self.config.get(key) or {}
        if not isinstance(value, dict):
            raise CorruptFileError(f"config.json has {key} = {value!r}, expected an object")
        return value

    def _float(self, key: str) -> float:
        value = self.config.get(key)
        if not isinstance(value, int | float) or value <= 0:
            raise CorruptFileError(f"config.json has {key} = {value!r}, expected a number")
        return float(value)


def _add_yarn(writer: gguf.GGUFWriter, rope: dict[str, Any]) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(float(rope["factor"]))
    writer.add_rope_scaling_orig_ctx_len(int(rope["original_max_position_embeddings"]))
    for method, keys in {
        "add_rope_scaling_yarn_ext_factor": ("extrapolation_factor",),
        "add_rope_scaling_yarn_attn_factor": ("attention_factor", "attn_factor"),
        "add_rope_scaling_yarn_beta_fast": ("beta_fast",),
        "add_rope_scaling_yarn_beta_slow": ("beta_slow",),
    }.items():
        value = next((rope[key] for key in keys if rope.get(key) is not None), None)
        if value is not None:
            getattr(writer, method)(float(value))
