"""Where and how numbers are computed: the device, the precision, and what of the machine decides the bits."""

import os
import platform
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from twinrun.base.errors import TrainingError
from twinrun.core.params import TrainParams
from twinrun.dataset.manifest import Split
from twinrun.training.launch import launch
from twinrun.training.shards import Numerics


def resolve_numerics(params: TrainParams, images: NDArray[np.uint8], train: Split) -> Numerics:
    """Decide what `auto` means here and measure the training pixels.

    Raises TrainingError where a GPU is asked for and there is none.
    """
    device = _device(params)
    _make_deterministic(device)
    mean, std = pixel_statistics(images, train.rows)
    return Numerics(device, torch.bfloat16 if _uses_bfloat16(params, device) else None, mean, std)


def describe_numerics(numerics: Numerics) -> dict[str, Any]:
    """What of processor and precision decides the bits of the weights; part of the fingerprint."""
    description: dict[str, Any] = {
        "device": numerics.device.type,
        "precision": "bf16" if numerics.autocast is torch.bfloat16 else "fp32",
        "switches": {name: os.environ[name] for name in _KERNEL_SWITCHES if name in os.environ},
    }
    if numerics.device.type == "cuda":
        return {**description, **describe_gpus()[numerics.device.index or 0]}
    return {
        **description,
        "machine": platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "processor": _processor_class(),
    }


def describe_gpus() -> list[dict[str, Any]]:
    """Of every GPU here its name, and versions of CUDA and cuDNN."""
    if not torch.cuda.is_available():
        return []
    return [
        {
            "gpu": torch.cuda.get_device_name(index),
            "gpu_capability": ".".join(map(str, torch.cuda.get_device_capability(index))),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        }
        for index in range(torch.cuda.device_count())
    ]


def gpu_uuids(params: TrainParams, processes: int) -> list[str]:
    """What NVIDIA's driver calls the GPUs that so many processes on this machine train on; empty on its processors."""
    if _device(params).type != "cuda":
        return []
    used = min(processes, torch.cuda.device_count())
    return [f"GPU-{torch.cuda.get_device_properties(index).uuid}" for index in range(used)]


def pixel_statistics(images: NDArray[np.uint8], rows: NDArray[np.int64]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over the given images, as shares of 255, from exact counts.

    A channel that is the same everywhere gets a deviation of 1, so that it can be divided by.
    """
    channels = images.shape[-1]
    counts = np.zeros((channels, 256), dtype=np.int64)
    for start in range(0, len(rows), 1024):
        pixels = images[rows[start : start + 1024]]
        for channel in range(channels):
            counts[channel] += np.bincount(pixels[..., channel].ravel(), minlength=256)
    values = np.arange(256) / 255
    shares = counts / counts.sum(axis=1, keepdims=True)
    means = shares @ values
    deviations = np.sqrt(np.maximum(shares @ values**2 - means**2, 0))
    return tuple(means.tolist()), tuple((d if d > 1e-6 else 1.0) for d in deviations.tolist())


# What a person may set to make the numeric libraries choose other kernels.
_KERNEL_SWITCHES = (
    "ATEN_CPU_CAPABILITY",
    "CUBLAS_WORKSPACE_CONFIG",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "NVIDIA_TF32_OVERRIDE",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
    "OPENBLAS_CORETYPE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
)


def _processor_class() -> dict[str, Any]:
    """What the numeric libraries look at to choose kernels and block sizes: not how many cores there are."""
    return {name: value for name, value in sorted(torch.cpu.get_capabilities().items()) if not name.startswith("num_")}


def _device(params: TrainParams) -> torch.device:
    if params.accelerator == "gpu" and not torch.cuda.is_available():
        raise TrainingError(
            "params.yaml asks for a GPU (train.accelerator: gpu) and PyTorch finds none. "
            "Set it to auto or cpu, or check the driver with nvidia-smi."
        )
    if params.accelerator == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if params.devices > torch.cuda.device_count():
        raise TrainingError(
            f"params.yaml asks for {params.devices} training processes (train.devices), each on a GPU of its own, and "
            f"PyTorch finds {torch.cuda.device_count()}. Lower it, or set train.accelerator: cpu."
        )
    return torch.device("cuda", launch().local_rank)


def _uses_bfloat16(params: TrainParams, device: torch.device) -> bool:
    if params.precision != "auto":
        return params.precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # Without these instructions autocast to bfloat16 is slower than float32.
    return any(matrix_instructions().values())


def matrix_instructions() -> dict[str, bool]:
    """Whether the processor has each kind of instructions that multiply matrices of bfloat16."""
    known = torch.cpu.get_capabilities()
    return {name: bool(known.get(name, False)) for name in ("amx_bf16", "avx512_bf16")}


def _make_deterministic(device: torch.device) -> None:
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = False
