"""Runs a function in several gloo processes on this machine."""

import multiprocessing
import os
import pickle
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch

from vidcsl.distributed import DistributedContext, distributed_context

# Forked from a server that has imported the slow part once, and never ran any of it: a forked torch
# that has run may hang in its thread pool.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["torch", "torchvision", "sklearn.cluster", "vidcsl.models"])


def run_in_processes(function: Callable[..., Any], size: int, *arguments: Any) -> list[Any]:
    """`function(distributed, *arguments)` in `size` processes; their results in rank order."""
    queue = PROCESSES.Queue()
    processes = start_processes(function, size, *arguments, results=queue)
    try:
        results = dict(pickle.loads(queue.get(timeout=120)) for _ in processes)
    finally:
        for process in processes:
            process.join(timeout=10)
            process.kill()
    failures = [value for value in results.values() if isinstance(value, _Failure)]
    if failures:
        raise AssertionError(failures[0].text)
    return [results[rank] for rank in range(size)]


def start_processes(
    function: Callable[..., Any], size: int, *arguments: Any, results: Any = None
) -> list[Any]:
    """Start the processes; each puts (rank, result), pickled, into the queue `results`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [
        PROCESSES.Process(target=_process, args=(rank, function, size, port, results, arguments))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    return processes


class _Failure:
    def __init__(self, text: str) -> None:
        self.text = text


def _process(
    rank: int, function: Callable[..., Any], size: int, port: int, queue: Any, arguments: Any
) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(size),
        LOCAL_WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    torch.set_num_threads(1)
    try:
        with distributed_context("cpu") as distributed:
            assert isinstance(distributed, DistributedContext)
            result = function(distributed, *arguments)
    except BaseException:
        result = _Failure(traceback.format_exc())
    # Pickled here: a tensor put as it is would be shared memory of a process that soon ends.
    if queue:
        queue.put(pickle.dumps((rank, result)))
