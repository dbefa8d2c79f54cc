"""The key-value stores at which generations meet; torch's TCPStore, kept by one replica."""

from __future__ import annotations

import socket
import threading
from datetime import timedelta

import torch.distributed as dist

__all__ = ["Store"]

_CONNECT_TIMEOUT_S = 30.0


class Store:
    """This replica's own store, and its connections to those of others.

    Args:
        address: host name under which other replicas reach this one; None takes what the system's name resolves to.
    """

    def __init__(self, address: str | None) -> None:
        self._address = address
        self._own: dist.TCPStore | None = None
        self._lock = threading.Lock()

    def open(self) -> tuple[str, int]:
        """Host and port of the own store; it is made at the first call."""
        with self._lock:
            if self._own is None:
                self._address = self._address or _own_address()
                self._own = dist.TCPStore(
                    self._address,
                    0,
                    is_master=True,
                    wait_for_workers=False,
                    timeout=timedelta(seconds=_CONNECT_TIMEOUT_S),
                )
            assert self._address is not None
            return self._address, self._own.port

    def connect(self, store: tuple[str, int]) -> dist.TCPStore:
        """A connection to the store at (host, port), which may be the own one.

        Raises:
            RuntimeError: (torch's DistNetworkError among them) nobody answers there within 30 s.
        """
        if self._own is not None and store == self.open():
            return self._own
        host, port = store
        return dist.TCPStore(
            host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=_CONNECT_TIMEOUT_S)
        )


def _own_address() -> str:
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return "127.0.0.1"
