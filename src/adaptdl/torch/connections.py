"""Cutting the TCP connections of a process group: the only way to wake who waits in one of gloo's collectives.

gloo closes a group's connections when the group is destroyed, which waits for the collectives under way. These end when a
connection does; that of a process that was stopped, or of a machine without power, stays open for minutes.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from pathlib import Path

__all__ = ["cut", "open_sockets"]

_DESCRIPTORS = Path("/proc/self/fd")


def open_sockets() -> dict[int, int]:
    """Inode → descriptor of each socket of this process; nothing where the system does not tell (it is not Linux)."""
    found = {}
    if _DESCRIPTORS.is_dir():
        for entry in _DESCRIPTORS.iterdir():
            try:
                target = os.readlink(entry)
            except OSError:  # closed meanwhile
                continue
            if target.startswith("socket:["):
                found[int(target[len("socket:[") : -1])] = int(entry.name)
    return found


def cut(inodes: frozenset[int]) -> None:
    """Shuts down those of these sockets that are TCP connections; their descriptors stay whose they are."""
    for inode, descriptor in open_sockets().items():
        if inode in inodes:
            _shut_down(inode, descriptor)


def _shut_down(inode: int, descriptor: int) -> None:
    try:
        copy = os.dup(descriptor)
    except OSError:  # closed meanwhile
        return
    status = os.fstat(copy)
    if status.st_ino != inode or not stat.S_ISSOCK(status.st_mode):
        os.close(copy)  # closed meanwhile, and the number was given to something else
        return
    with socket.socket(fileno=copy) as connection:
        if connection.family not in (socket.AF_INET, socket.AF_INET6):
            return
        if connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return  # one that listens; without it gloo ends the process
        with contextlib.suppress(OSError):  # its other end is gone
            connection.shutdown(socket.SHUT_RDWR)
