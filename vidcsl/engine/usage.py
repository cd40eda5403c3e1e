"""What a process uses of the machine."""

import resource

import torch


def peak_memory_mib(device: torch.device) -> float:
    """Most memory held so far: on the GPU by this process, else by it and its largest worker."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    kibibytes = sum(resource.getrusage(each).ru_maxrss for each in who)
    return kibibytes / 2**10


def usage(device: torch.device) -> dict[str, float]:
    """Peak memory, and the share of the last moments in which the GPU worked, where it tells.

    It tells where there is a GPU and nvidia-ml-py (`pip install 'vidcsl[gpu]'`).
    """
    memory = {"memory_mib": peak_memory_mib(device)}
    if device.type != "cuda":
        return memory
    try:
        return {**memory, "gpu_use": torch.cuda.utilization(device) / 100}
    except (ModuleNotFoundError, RuntimeError):
        return memory
