"""GPUs of this machine, and how many runs share one."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

#: How much more memory another run gets than the first one needed.
_RESERVE = 1.2

#: Bytes that each process needs on a GPU besides its tensors.
_CONTEXT = 600 * 1024**2


@dataclass(frozen=True)
class GpuMemory:
    """Memory of a GPU, as seen by the first process that has done a run on it.

    Attributes:
        free: Bytes that are left while this process uses as much as it ever did.
        peak: Bytes that this process used at most.
    """

    free: int
    peak: int


def workers_on_gpus(memory: GpuMemory, *, gpus: int, most: int) -> int:
    """Return how many runs to do at the same time on equal GPUs.

    Args:
        memory: What the first run left of one GPU.
        gpus: Number of GPUs.
        most: Number of runs that the CPU cores allow.
    """
    more = int(memory.free // (memory.peak * _RESERVE + _CONTEXT))
    return max(1, min(gpus * (1 + more), most))


def least_used(gpus: Sequence[str], used: Sequence[str | None]) -> str | None:
    """Return the GPU that the fewest processes use, or None if there is no choice.

    Args:
        gpus: The GPUs.
        used: The GPU of each process.
    """
    return min(gpus, key=used.count, default=None)


def visible_gpus(device: str | None) -> list[str]:
    """Return the GPUs among which runs can be divided, as CUDA_VISIBLE_DEVICES names them.

    Args:
        device: Device of the runs; None takes a GPU if there is one. A certain GPU, such as
            "cuda:1", leaves no choice.
    """
    import torch

    if device not in (None, "cuda") or not torch.cuda.is_available():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named:
        return [name.strip() for name in named.split(",")]
    return [str(index) for index in range(torch.cuda.device_count())]


def is_on_gpu(device: str | None) -> bool:
    """Return whether runs are done on a GPU. None takes a GPU if there is one."""
    import torch

    if device is not None:
        return device != "cpu"
    return torch.cuda.is_available() or torch.backends.mps.is_available()


def memory_after_run(device: str | None) -> GpuMemory | None:
    """Return the memory of the GPU that a run in this process has used, or None for a CPU."""
    import torch

    index = device if device is not None and device.startswith("cuda:") else None
    peak = torch.cuda.max_memory_reserved(index)
    if not peak:
        return None
    free, _ = torch.cuda.mem_get_info(index)
    given_back = peak - torch.cuda.memory_reserved(index)  # which the next run takes again
    return GpuMemory(free=free - given_back, peak=peak)
