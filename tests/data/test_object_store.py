"""Shards in an S3-compatible store, on a loopback address of this machine."""

import contextlib
import itertools
import socket
import threading

import fsspec
import pytest
import s3fs
import torch
from moto import server

from tests.data.test_shards import loader, packed  # noqa: F401
from vidcsl.data import shards
from vidcsl.data.lists import read_list
from vidcsl.errors import UserError, VideoError


class Proxy:
    """Stands between this process and the store; cuts answers off, or lets nobody in."""

    def __init__(self, port):
        self.cuts, self.connections = 0, 0
        self._target = ("127.0.0.1", port)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            client, _ = self._socket.accept()
            self.connections += 1
            store = socket.create_connection(self._target)
            threading.Thread(target=self._carry, args=(client, store, False), daemon=True).start()
            threading.Thread(target=self._carry, args=(store, client, True), daemon=True).start()

    def _carry(self, source, sink, answers):
        while data := source.recv(4096):
            if answers and self.cuts and len(data) > 1000:  # in the middle of a video
                self.cuts -= 1
                sink.sendall(data[:700])
                break
            sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):  # by then the other thread has done so
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def proxy(packed):  # noqa: F811
    store = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    store.start()
    proxy = Proxy(store.get_host_and_port()[1])
    variables = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}",
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        files = fsspec.filesystem("s3")
        files.mkdir("bucket")
        for path in (packed / "shards").glob("train*"):
            files.pipe_file(f"bucket/{path.name}", path.read_bytes())
        yield proxy
        s3fs.S3FileSystem.clear_instance_cache()
    store.stop()


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_files_from_the_middle_of_an_epoch_on(packed, proxy, workers):  # noqa: F811
    files = loader(packed / "train.csv", packed / "videos")
    store = loader("s3://bucket/train.csv", "s3://bucket", workers=workers)
    for one, other in itertools.chain(
        zip(files.epoch(0), store.epoch(0), strict=True),
        zip(files.epoch(1, 2), store.epoch(1, 2), strict=True),
    ):
        for name in ("frames", "sizes", "labels", "groups", "indices", "frame_indices"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name
        assert len(one.damaged) == len(other.damaged)


def test_a_dropped_connection_is_made_anew(packed, proxy, monkeypatch):  # noqa: F811
    slept = []
    monkeypatch.setattr(shards.time, "sleep", slept.append)
    span = max(
        (video.span for video in read_list("s3://bucket/train.csv", root="s3://bucket").videos),
        key=lambda span: span.size,
    )
    before, proxy.cuts = proxy.connections, 3
    assert len(span.read()) == span.size
    assert proxy.cuts == 0
    assert proxy.connections > before


def test_a_store_that_is_gone_ends_in_one_line(packed, proxy, monkeypatch):  # noqa: F811
    span = read_list("s3://bucket/train.csv", root="s3://bucket").videos[0].span
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        monkeypatch.setattr(shards, "PAUSES", (0.0,))
        s3fs.S3FileSystem.clear_instance_cache()
        with pytest.raises(UserError, match=r"^cannot read s3://bucket/train-.*connect") as caught:
            span.read()
    s3fs.S3FileSystem.clear_instance_cache()
    assert not isinstance(caught.value, VideoError)  # which would be replaced
    assert "\n" not in str(caught.value)
