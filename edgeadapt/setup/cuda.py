"""What llama.cpp's CUDA kernels are compiled with, and for which GPU."""

from __future__ import annotations

import ctypes
import os
import shutil
from pathlib import Path

from edgeadapt.errors import MissingSetupError

_DRIVER = "libcuda.so.1"
_USUAL = Path("/usr/local/cuda/bin/nvcc")
"""Where NVIDIA's packages put it, on a Jetson too; not on the PATH."""
_MAJOR, _MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*, cuda.h."""


def cuda_options() -> dict[str, str]:
    """Cmake options that add kernels for this machine's NVIDIA GPUs, and for no others.

    Left to itself, ggml compiles for every generation of GPUs, which takes hours on a board.

    Raises:
        MissingSetupError: there is no nvcc, or no GPU is seen; says what to do.
    """
    nvcc = find_nvcc().resolve()
    options = {
        "GGML_CUDA": "ON",
        "CMAKE_CUDA_COMPILER": str(nvcc),
        "CMAKE_CUDA_ARCHITECTURES": ";".join(compute_capabilities()),
    }
    toolkit = nvcc.parents[1]
    if (toolkit / "include/cuda.h").is_file():  # else it is a script, and cmake looks itself
        options["CUDAToolkit_ROOT"] = str(toolkit)  # it would take another one from the PATH
    return options


def find_nvcc() -> Path:
    """CUDA's compiler: $CUDACXX, or on the PATH, or in /usr/local/cuda.

    Raises:
        MissingSetupError: it is in none of these places.
    """
    for name in (os.environ.get("CUDACXX"), "nvcc", str(_USUAL)):
        if name and (found := shutil.which(name)):
            return Path(found)
    raise MissingSetupError(
        f"nvcc, CUDA's compiler, is neither on the PATH nor {_USUAL}; on a Jetson type: sudo apt "
        "install nvidia-jetpack, elsewhere install the CUDA toolkit, or say CUDACXX=/path/to/nvcc"
    )


def compute_capabilities(driver: str = _DRIVER) -> list[str]:
    """Of each kind of NVIDIA GPU here, as cmake writes them: `87` for 8.7.

    Args:
        driver: the driver's library.

    Raises:
        MissingSetupError: there is no driver, or it sees no GPU.
    """
    try:
        cuda = ctypes.CDLL(driver)
    except OSError as error:
        raise MissingSetupError(
            f"there is no NVIDIA driver here ({error}); --cuda is for machines with an NVIDIA GPU, "
            "leave it out to compute on the CPU"
        ) from error
    count = ctypes.c_int()
    code = cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count))
    if code or not count.value:
        why = f"error {code}" if code else "none is there"
        raise MissingSetupError(
            f"NVIDIA's driver sees no GPU ({why}); leave --cuda out to compute on the CPU"
        )
    return sorted({_capability(cuda, number) for number in range(count.value)})


def _capability(cuda: ctypes.CDLL, number: int) -> str:
    device, value, parts = ctypes.c_int(), ctypes.c_int(), []
    cuda.cuDeviceGet(ctypes.byref(device), number)
    for attribute in (_MAJOR, _MINOR):
        cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        parts.append(str(value.value))
    return "".join(parts)
