"""Host memory that was freed but is still held by the process."""

import ctypes

import torch


def return_freed_memory(device: torch.device) -> None:
    """Give what was freed back to the system, where `device` is the CPU and its library can.

    glibc before 2.38 often does not use freed aligned memory again where small live objects lie
    between: long loops over large tensors grow without this. It costs some page faults.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if device.type == "cpu" else None
    if trim:
        trim(0)
