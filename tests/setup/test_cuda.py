"""What `setup llama-cpp --cuda` looks for. There is no GPU: a library of the driver's functions, as
cuda.h declares them, stands for the driver."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgeadapt.cli import cli
from edgeadapt.errors import MissingSetupError
from edgeadapt.setup import cuda

DRIVER = """
int cuInit(unsigned flags) { return INIT; }
int cuDeviceGetCount(int *count) { *count = COUNT; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    int major[] = {8, 12, 8}, minor[] = {7, 0, 7};
    *value = attribute == 75 ? major[device] : attribute == 76 ? minor[device] : -1;
    return 0;
}
"""


def driver(folder: Path, *, count: int, init: int = 0) -> str:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here")
    (folder / "driver.c").write_text(DRIVER)
    library = folder / "libcuda.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", f"-DCOUNT={count}", f"-DINIT={init}", "-o", library,
         folder / "driver.c"],
        check=True,
    )  # fmt: skip
    return str(library)


def program(path: Path) -> Path:
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without nvcc; the folder is its PATH."""
    monkeypatch.delenv("CUDACXX", raising=False)
    monkeypatch.setattr(cuda, "_USUAL", tmp_path / "cuda/bin/nvcc")
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def test_nvcc_is_found_where_it_may_be(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cuda/bin").mkdir(parents=True)
    usual = program(tmp_path / "cuda/bin/nvcc")
    assert cuda.find_nvcc() == usual
    found = program(bare / "nvcc")
    assert cuda.find_nvcc() == found
    own = program(tmp_path / "my-nvcc")
    monkeypatch.setenv("CUDACXX", str(own))
    assert cuda.find_nvcc() == own


@pytest.mark.usefixtures("bare")
def test_without_nvcc_it_is_refused_in_a_sentence() -> None:
    done = CliRunner().invoke(cli, ["setup", "llama-cpp", "--cuda"])
    assert done.exit_code == 2
    assert "nvcc, CUDA's compiler, is neither on the PATH nor" in done.stderr
    assert "nvidia-jetpack" in done.stderr


@pytest.mark.parametrize(("count", "expected"), [(1, ["87"]), (3, ["120", "87"])])
def test_kernels_are_for_the_gpus_that_are_there(
    count: int, expected: list[str], tmp_path: Path
) -> None:
    assert cuda.compute_capabilities(driver(tmp_path, count=count)) == expected


def test_without_a_driver_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingSetupError, match=r"no NVIDIA driver here.*leave it out"):
        cuda.compute_capabilities(str(tmp_path / "none.so"))


def test_without_a_gpu_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingSetupError, match=r"sees no GPU \(none is there\)"):
        cuda.compute_capabilities(driver(tmp_path, count=0))


def test_a_driver_that_fails_is_told(tmp_path: Path) -> None:
    with pytest.raises(MissingSetupError, match=r"sees no GPU \(error 100\)"):
        cuda.compute_capabilities(driver(tmp_path, count=0, init=100))


def test_libraries_come_from_the_toolkit_of_the_compiler(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvcc = program(bare / "nvcc")
    monkeypatch.setattr(cuda, "compute_capabilities", lambda: ["87", "90"])
    script = {
        "GGML_CUDA": "ON",
        "CMAKE_CUDA_COMPILER": str(nvcc),
        "CMAKE_CUDA_ARCHITECTURES": "87;90",
    }
    assert cuda.cuda_options() == script  # of which nobody knows what it calls
    (tmp_path / "include").mkdir()
    (tmp_path / "include/cuda.h").touch()
    assert cuda.cuda_options() == script | {"CUDAToolkit_ROOT": str(tmp_path)}
