"""Replicas' processes, forked from one on each host that has imported torch already.

To start a process of Ray takes a second, and to import torch in it three more, all of it computing. So it is done once::

    raylet --starts--> launcher --asks--> server --forks--> worker
                          |                 ^
                          +---starts it, if there is none

Ray starts its workers with a command that can be told to it (``py_executable`` of a runtime environment): `worker_command`. It
runs this file, with the standard library alone, as a *launcher*, which hands on what Ray has given it (arguments, environment,
working directory, standard streams) and ends. The *server* imports what it was told to and then forks a *worker* for each
launcher; a worker goes on as a process that was started by Ray in the usual way would, and imports Ray, which must never be
forked: the numbers that it draws would be the same in all workers.

What a launcher and a server say to each other, over a socket beside those of the raylet, each once it knows the other's user to
be its own::

    launcher                         server
    CONNECTED                        IMPORTING
        <------------- READY ------- SERVING        a launcher that has waited for too long is gone by now
        -- descriptors, request --->
        <------------ FORKED ------- SERVING        the worker is in the launcher's process group, where Ray looks for it
    ENDED

Up to its request, and whenever the server ends or fails before it has forked, a launcher can do without: it then becomes the
worker itself, in the usual way. There is one server for each combination of what matters to imports: the interpreter, the
modules, certain variables of the environment (`_TELLING`). It ends with its raylets, as do their workers, or when
there were no workers for a while; and it does not serve at all if an import has opened a device, which a fork cannot use.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import hashlib
import importlib
import json
import os
import runpy
import selectors
import shlex
import signal
import socket
import stat
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

__all__ = ["worker_command"]

_TELLING = (
    "ATEN_ BLIS_ CONDA_ CUDA_ GLIBC_ GOMP_ GOTO_ HIP_ KMP_ LANG LC_ LD_ MALLOC_ MKL_ NCCL_ NUMEXPR_ NUMPY_ NVIDIA_ OMP_ "
    "OPENBLAS_ PATH PYTHON PYTORCH_ ROCR_ SCIPY_ TORCH TRITON_ VIRTUAL_ENV"
)
"""How variables begin that a module may look at when it is imported. The others are a worker's own in any case."""
_DEVICES = ("/dev/nvidia", "/dev/kfd", "/dev/dri", "/dev/accel", "/dev/davinci")
_READY, _FORKED = b"r", b"f"
_LOCK_TIMEOUT_S = 10.0
_IMPORT_TIMEOUT_S = 30.0
"""How long a launcher waits for a server that imports. A raylet gives up a worker after a minute."""
_ANSWER_TIMEOUT_S = 10.0
_IDLE_S = 600.0
"""How long a server without workers stays."""
_MOST_DESCRIPTORS, _MOST_BYTES = 16, 2**24
_PYTHON_OF_RAYLET = r"tr '\0' '\n' < /proc/$PPID/cmdline | sed -n 's/^--python_worker_command=\([^ ]*\).*/\1/p'"
"""A shell's way to find what Ray would have started."""


class _Request(NamedTuple):
    """What a worker needs to go on as if Ray had started it."""

    command: list[str]
    """A script and its arguments."""
    environment: dict[str, str]
    directory: str
    umask: int
    process_group: int
    raylet: int
    """Its process."""


def worker_command(modules: Sequence[str], num_threads: int) -> str | None:
    """What Ray is to start a worker with: ``py_executable`` of its runtime environment. On a node that has this interpreter or
    this file elsewhere it comes to what Ray would have started.

    Args:
        modules: imported before workers are forked; not Ray, nor what imports it.
        num_threads: OMP_NUM_THREADS, unless the node has set it.

    Returns:
        None if this system cannot do it.
    """
    if sys.platform != "linux" or not hasattr(os, "pidfd_open"):
        return None
    python, script = sys.executable, os.path.abspath(__file__)
    if any(shlex.quote(path) != path for path in (python, script)):
        return None
    launcher = f"{python} -I -S {script} launch {num_threads} {','.join(modules)}"
    return f"$(test -x {python} -a -r {script} && echo {launcher} || {_PYTHON_OF_RAYLET})"


def _say(text: str) -> None:
    """In the raylet's log: nobody has set up logging yet."""
    sys.stderr.write(f"adaptdl: {text}\n")
    sys.stderr.flush()


# -- the launcher -----------------------------------------------------------------------------------------------------


def _launch(num_threads: str, modules: str, *command: str) -> None:
    """Has the worker forked, or becomes it."""
    os.environ.setdefault("OMP_NUM_THREADS", num_threads)
    try:
        _ask_for_fork(modules, command)
    except (OSError, ValueError) as error:
        _say(f"a replica's process is started anew, not forked: {error}")
        os.execv(sys.executable, [sys.executable, *command])


def _ask_for_fork(modules: str, command: Sequence[str]) -> None:
    """Raises OSError or ValueError: nothing was forked."""
    option = "--raylet-name="
    raylet = next((argument for argument in command if argument.startswith(option)), None)
    if raylet is None:
        raise ValueError(f"Ray's command has no {option}")
    path = os.path.join(os.path.dirname(raylet.removeprefix(option)), f"adaptdl-{_key(modules)}")
    request = _Request(
        command=list(command),
        environment=dict(os.environ),
        directory=os.getcwd(),
        umask=_umask(),
        process_group=os.getpgid(0),
        raylet=os.getppid(),
    )
    payload = json.dumps(request).encode()
    pipes = [number for number in _open_descriptors() if number > 2 and _is_pipe(number)]  # by them Ray tells who lives
    with _connected(path, modules) as server:
        server.settimeout(_IMPORT_TIMEOUT_S)
        if server.recv(1) != _READY:
            raise ConnectionError("the server has ended")
        server.settimeout(_ANSWER_TIMEOUT_S)
        socket.send_fds(server, [struct.pack("!I", len(payload))], [0, 1, 2, *pipes[: _MOST_DESCRIPTORS - 3]])
        server.sendall(payload)
        try:
            answer = server.recv(1)
        except TimeoutError:
            raise SystemExit("a server has not said whether it has forked") from None  # Ray starts another one
        if answer != _FORKED:
            raise ConnectionError("the server could not fork")


def _key(modules: str) -> str:
    """Of the server whose forks are as good as a new process."""
    beginnings = tuple(_TELLING.split())
    told = {name: value for name, value in os.environ.items() if name.startswith(beginnings)}
    described = json.dumps([sys.executable, __file__, modules, sorted(told.items())])
    return hashlib.sha256(described.encode()).hexdigest()[:16]


def _connected(path: str, modules: str) -> socket.socket:
    """To the server at `path`, which is started if there is none."""
    with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
        return _connect(path)
    with _locked(f"{path}.lock"):
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
            return _connect(path)
        _start_server(path, modules)
        return _connect(path)


def _connect(path: str) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    try:
        server.settimeout(_ANSWER_TIMEOUT_S)
        server.connect(path)
        _check_user(server)
    except BaseException:
        server.close()
        raise
    return server


def _check_user(peer: socket.socket) -> None:
    """Raises PermissionError: at the other end there is another user's process."""
    size = struct.calcsize("3i")
    _, user, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    if user != os.geteuid():
        raise PermissionError(f"the process at the other end must be of user {os.geteuid()}, but is of {user}")


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
    """One launcher at a time. Raises TimeoutError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        until = time.monotonic() + _LOCK_TIMEOUT_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise TimeoutError(f"waited {_LOCK_TIMEOUT_S:g} s for the lock {path}") from None
                time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


def _start_server(path: str, modules: str) -> None:
    """It listens from now on, and answers once it has imported all."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # of one that has ended
    with socket.socket(socket.AF_UNIX) as listener:
        before = os.umask(0o177)
        try:
            listener.bind(path)
        finally:
            os.umask(before)
        listener.listen(128)
        command = [sys.executable, __file__, "serve", str(listener.fileno()), str(os.getppid()), modules]
        if os.fork():
            return
        try:
            os.setpgid(0, 0)  # Ray ends what is left in a worker's group
            for number in _open_descriptors():
                if number > 2 and number != listener.fileno():
                    with contextlib.suppress(OSError):
                        os.close(number)
            listener.set_inheritable(True)
            os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # to ask for devices another way would open them
            os.execv(sys.executable, command)
        finally:
            os._exit(127)


def _open_descriptors() -> list[int]:
    return [int(name) for name in os.listdir("/proc/self/fd")]


def _is_pipe(number: int) -> bool:
    try:
        return stat.S_ISFIFO(os.fstat(number).st_mode)
    except OSError:
        return False


def _umask() -> int:
    """It can only be read by setting it."""
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


# -- the server -------------------------------------------------------------------------------------------------------


class _Server:
    """Forks workers, and waits for their ends.

    Args:
        listener: where launchers connect.
        raylet: the process of the first one.
    """

    def __init__(self, listener: socket.socket, raylet: int) -> None:
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._raylets: dict[int, int] = {}
        """Process → descriptor, readable once it has ended; of those that live."""
        self._workers: dict[int, int] = {}
        self._raylet_of: dict[int, int] = {}
        """A worker's."""
        self._watch(self._raylets, raylet)

    def serve(self) -> _Request | None:
        """Returns in every worker, with what it is to do; and in the server itself with None, when it is of no more use."""
        while self._raylets:
            events = self._selector.select(_IDLE_S)
            if not events and not self._workers:
                break
            for key, _ in events:
                if key.fileobj is self._listener:
                    if (request := self._accept()) is not None:
                        return request
                else:
                    self._note_end(key.data)
        return None

    def _accept(self) -> _Request | None:
        """Serves one launcher; returns in the worker, and None in the server."""
        connection, _ = self._listener.accept()
        descriptors: list[int] = []
        with connection:
            try:
                _check_user(connection)
                connection.settimeout(_ANSWER_TIMEOUT_S)
                connection.sendall(_READY)
                request = _receive(connection, descriptors)
                worker = os.fork()
                if not worker:
                    self._leave(descriptors)
                    return request
                self._raylet_of[worker] = request.raylet
                self._watch(self._workers, worker)
                try:
                    self._watch(self._raylets, request.raylet)
                    os.setpgid(worker, request.process_group)
                    connection.sendall(_FORKED)
                except OSError:
                    os.kill(worker, signal.SIGKILL)  # its launcher becomes the worker, or is gone
                    raise
            except (OSError, ValueError, TypeError) as error:
                _say(f"a launcher of replicas was not served: {error}")
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)
        return None

    def _leave(self, descriptors: list[int]) -> None:
        """In a worker: nothing of the server is kept."""
        self._listener.close()
        self._selector.close()
        for watched in (*self._raylets.values(), *self._workers.values()):
            os.close(watched)
        for number, descriptor in enumerate(descriptors[:3]):
            os.dup2(descriptor, number)
            os.close(descriptor)
        descriptors.clear()  # the others are the worker's

    def _watch(self, processes: dict[int, int], process: int) -> None:
        """Raises ProcessLookupError: it has ended."""
        if process not in processes:
            processes[process] = os.pidfd_open(process)
            self._selector.register(processes[process], selectors.EVENT_READ, data=process)

    def _note_end(self, process: int) -> None:
        """Of a raylet, without which its workers are of no use, or of a worker."""
        if process in self._raylets:
            descriptor = self._raylets.pop(process)
            for worker, raylet in self._raylet_of.items():
                if raylet == process:
                    os.kill(worker, signal.SIGKILL)
        else:
            descriptor = self._workers.pop(process)
            del self._raylet_of[process]
            os.waitpid(process, 0)
        self._selector.unregister(descriptor)
        os.close(descriptor)


def _receive(connection: socket.socket, descriptors: list[int]) -> _Request:
    """A launcher's request. Its `descriptors` are put there."""
    header, received, _, _ = socket.recv_fds(connection, 4, _MOST_DESCRIPTORS)
    descriptors += received
    if len(header) < 4 or len(received) < 3:
        raise ValueError("its request was cut off")
    (num_bytes,) = struct.unpack("!I", header)
    if num_bytes > _MOST_BYTES:
        raise ValueError(f"its request has {num_bytes} bytes")
    with connection.makefile("rb") as stream:
        payload = stream.read(num_bytes)
    return _Request(*json.loads(payload))


def _serve(listener: str, raylet: str, modules: str) -> None:
    """A server, up to its end; and in each of its workers all that it does."""
    paths = sys.path[1:]  # without this file's directory
    sys.path[:] = [*paths, os.path.dirname(os.path.dirname(os.path.abspath(__file__)))]
    gc.disable()
    for module in modules.split(","):
        importlib.import_module(module)
    gc.freeze()
    gc.enable()
    if opened := _open_devices():
        _say(f"replicas are not forked: to import {modules} opens {', '.join(opened)}")
        return
    if "ray" in sys.modules:
        _say(f"replicas are not forked: to import {modules} imports Ray")
        return
    with socket.socket(fileno=int(listener)) as listening:
        request = _Server(listening, int(raylet)).serve()
    if request is not None:
        _become(request, paths)


def _open_devices() -> list[str]:
    opened = []
    for number in _open_descriptors():
        with contextlib.suppress(OSError):
            if (name := os.readlink(f"/proc/self/fd/{number}")).startswith(_DEVICES):
                opened.append(name)
    return opened


def _become(request: _Request, paths: Sequence[str]) -> None:
    """Goes on as a process that was started with the request's command."""
    with contextlib.suppress(OSError):
        os.setpgid(0, request.process_group)  # the server does it, too: whoever is first
    os.environ.clear()
    os.environ.update(request.environment)
    os.chdir(request.directory)
    os.umask(request.umask)
    script, *_ = sys.argv = request.command
    sys.path[:] = [os.path.dirname(script), *paths]
    importlib.invalidate_caches()
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed()  # Python's own numbers are other ones in every fork, numpy's are not
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    _, role, *arguments = sys.argv
    (_launch if role == "launch" else _serve)(*arguments)
