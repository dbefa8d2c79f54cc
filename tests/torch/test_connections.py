"""Cutting connections: real sockets of this process."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from adaptdl.torch import connections
from adaptdl.torch.connections import cut, open_sockets

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="this system does not list descriptors")


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def inode(of: socket.socket) -> int:
    return os.fstat(of.fileno()).st_ino


def test_a_connection_that_is_cut_ends_at_both_ends(listening: socket.socket) -> None:
    before = open_sockets()
    with socket.create_connection(listening.getsockname()) as ours, listening.accept()[0] as theirs:
        found = frozenset(open_sockets()) - frozenset(before)
        assert found == {inode(ours), inode(theirs)}
        theirs.settimeout(10)
        cut(frozenset({inode(ours)}))
        assert (theirs.recv(1), ours.recv(1)) == (b"", b"")
        assert ours.fileno() >= 0  # closing it is its owner's


def test_what_listens_or_is_no_tcp_connection_stays(listening: socket.socket) -> None:
    one, other = socket.socketpair()
    with one, other:
        cut(frozenset({inode(listening), inode(one)}))
        one.sendall(b"x")
        assert other.recv(1) == b"x"
        with socket.create_connection(listening.getsockname(), timeout=10):
            pass


@pytest.mark.parametrize("by", ["a file", "a pipe", "another connection"])
def test_a_descriptor_that_was_used_again_is_left_alone(
    by: str, listening: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose socket was closed after it was found."""
    closed = socket.create_connection(listening.getsockname())
    found = {inode(closed): closed.fileno()}
    closed.close()
    ends: list[int] = []
    if by == "a file":
        ends = [os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR)]
    elif by == "a pipe":
        ends = [*os.pipe()]
    else:
        ends = [socket.create_connection(listening.getsockname()).detach()]
    assert list(found.values()) == ends[:1]
    monkeypatch.setattr(connections, "open_sockets", lambda: found)
    descriptors = os.listdir("/proc/self/fd")
    cut(frozenset(found))
    assert os.listdir("/proc/self/fd") == descriptors
    if by == "another connection":
        os.write(ends[0], b"x")  # it still can
    for end in ends:
        os.close(end)
