import multiprocessing
import threading
import time
from functools import partial

from torch.utils.data import DataLoader, Dataset

from tests.processes import run_in_processes
from vidcsl.data.dataset import time_limit
from vidcsl.data.loader import write_stacks_at_signal
from vidcsl.training.monitor import EXIT_CODE, Watchdog, noted_signals


class Limited(Dataset):
    """Its items are read under a time limit."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        with time_limit(60, "a video"):
            return index


class Stuck(Dataset):
    """Its first item is quick; its second waits until its own stack was written to `path`."""

    def __init__(self, path):
        self.path = path

    def __len__(self):
        return 2

    def __getitem__(self, index):
        if index:
            self.ponder_a_video()
        return index

    def ponder_a_video(self):
        deadline = time.monotonic() + 60
        while "ponder_a_video" not in self.path.read_text() and time.monotonic() < deadline:
            time.sleep(0.05)


def test_a_hang_dumps_the_stacks_of_the_process_and_of_its_workers(tmp_path, capsys):
    path = tmp_path / "hangs" / "rank0.txt"
    path.parent.mkdir()
    path.touch()
    others = set(multiprocessing.active_children())
    batches = iter(
        DataLoader(
            Stuck(path), num_workers=1, worker_init_fn=partial(write_stacks_at_signal, path=path)
        )
    )
    next(batches)  # starting a worker may take longer than the watchdog waits
    pids = [child.pid for child in set(multiprocessing.active_children()) - others]
    with Watchdog(0.5, path=path, workers=lambda: pids):
        next(batches)
    text = path.read_text()
    assert text.count("no step ended for 0.5 s") == 1  # once a hang
    assert "test_a_hang_dumps_the_stacks_of_the_process_and_of_its_workers" in text
    assert text.index(f"worker {pids[0]}:") < text.index("ponder_a_video")
    assert "(LOG.HANG_SECONDS), the run waits on" in capsys.readouterr().err


def test_workers_forked_under_a_watchdog_can_limit_their_own_time(tmp_path):
    with Watchdog(100, path=tmp_path / "rank0.txt"):
        loader = DataLoader(Limited(), num_workers=1, timeout=30, multiprocessing_context="fork")
        assert [batch.item() for batch in loader] == [0, 1]


def test_a_run_that_does_not_hang_leaves_no_file(tmp_path):
    path = tmp_path / "rank0.txt"
    with Watchdog(5, path=path) as dog:
        dog.beat()
    assert not path.exists()
    with Watchdog() as dog:
        dog.beat()


def hang(path):
    with Watchdog(0.2, path=path, ends_run=True):
        threading.Event().wait()


def test_a_run_that_hangs_ends_if_configured(tmp_path, capfd):
    path = tmp_path / "rank0.txt"
    process = multiprocessing.get_context("fork").Process(target=hang, args=(path,))
    process.start()
    process.join(timeout=60)
    assert process.exitcode == EXIT_CODE
    (line,) = capfd.readouterr().err.splitlines()
    assert line == (
        "vidcsl: error: no step ended for 0.2 s (LOG.HANG_SECONDS), the run ends; the stacks "
        f"of its processes are in {path}"
    )
    assert "in hang" in path.read_text()


def wait_for_the_other(distributed, folder):
    with Watchdog(0.5, path=folder / f"rank{distributed.rank}.txt"):
        if distributed.rank == 1:
            ponder_alone()
        distributed.barrier()


def ponder_alone():
    time.sleep(2)


def test_when_one_process_hangs_all_dump_their_stacks(tmp_path):
    run_in_processes(wait_for_the_other, 2, tmp_path)
    waits, hangs = ((tmp_path / f"rank{rank}.txt").read_text() for rank in (0, 1))
    assert "in barrier" in waits
    assert "in ponder_alone" in hangs


def test_signals_are_not_asked_for_outside_the_main_thread():
    """Training may be called in a thread, where Python lets nobody set handlers."""
    seen = []

    def run():
        with noted_signals() as received:
            seen.append(received)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [[]]
