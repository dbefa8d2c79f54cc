"""Workers that are forked instead of started. Real processes; only the raylet is a small one of our own, that starts what it is
told to as the real one does (tests/runtime/test_replica_group.py has the real one)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from adaptdl import forking
from tests.processes import is_alive
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(forking.worker_command(["json"], 1) is None, reason="Linux only")

RAYLET = """
import json, subprocess, sys
for line in sys.stdin:
    told = json.loads(line)
    with open(told["log"], "w") as log:
        started = subprocess.Popen(told["command"], env=told["env"], cwd=told["cwd"], process_group=0, umask=0o027,
                                   stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    print(started.pid, flush=True)
"""
WORKER = """
import json, os, random, sys, time
out, = (argument.removeprefix("--out=") for argument in sys.argv if argument.startswith("--out="))
imported = [name for name in ("numpy", "colorsys") if name in sys.modules]
import numpy
umask = os.umask(0)
found = dict(pid=os.getpid(), parent=os.getppid(), group=os.getpgid(0), argv=sys.argv, path=sys.path, cwd=os.getcwd(),
             env=dict(os.environ), umask=umask, name=__name__, file=__file__, imported=imported,
             numbers=[random.random(), numpy.random.rand(), numpy.random.default_rng().random()],
             descriptors=len(os.listdir("/proc/self/fd")))
print("said by the worker", flush=True)
with open(out + ".new", "w") as file:
    json.dump(found, file)
os.rename(out + ".new", out)
until = time.monotonic() + 60
while not os.path.exists(out + ".end") and time.monotonic() < until:
    time.sleep(0.02)
"""
MODULES = "numpy,colorsys"
PLAIN = ("no launcher",)


class Raylet:
    """Starts workers, in a directory of a test's own."""

    def __init__(self, directory: Path, prefix: str = "") -> None:
        self.directory, self._prefix = directory, prefix
        (directory / "worker.py").write_text(WORKER)
        self.process = subprocess.Popen(
            [sys.executable, "-c", RAYLET], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._num_started = 0

    def start(
        self, *launcher: str, env: Mapping[str, str] | None = None, modules: str = MODULES
    ) -> tuple[int, Path, Path]:
        """Says with which process it began, where it says what it found, and where its output goes."""
        self._num_started += 1
        out = self.directory / f"{self._prefix}found-{self._num_started}"
        log = out.with_suffix(".log")
        launcher = launcher or ("-I", "-S", forking.__file__, "launch", "3", modules)
        command = [sys.executable, *(launcher if launcher != PLAIN else ()), str(self.directory / "worker.py")]
        command += [f"--raylet-name={self.directory}/raylet", "--word=two words", f"--out={out}"]
        told = {"command": command, "env": {**os.environ, **(env or {})}, "cwd": str(self.directory), "log": str(log)}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(told) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline()), out, log

    def run(self, *launcher: str, **more: Any) -> dict[str, Any]:
        """What a worker has found, which ends then."""
        started, out, log = self.start(*launcher, **more)
        found = {**found_by(out, log), "started": started, "log": log.read_text()}
        end(out)
        return found


def found_by(out: Path, log: Path) -> dict[str, Any]:
    try:
        wait_until(out.exists, "a worker", 60.0)
    except AssertionError as error:
        raise AssertionError(f"{error}, which has said: {log.read_text()}") from None
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def end(out: Path) -> None:
    Path(f"{out}.end").touch()


def is_there(pid: int) -> bool:
    """Not even as a zombie."""
    return Path(f"/proc/{pid}").exists()


def command_of(pid: int | str) -> str:
    """Empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


@pytest.fixture
def raylet(tmp_path: Path) -> Iterator[Raylet]:
    """When the test ends it is killed, and nothing of its servers may be left."""
    raylet = Raylet(tmp_path)
    yield raylet
    servers = [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit()
        and "serve" in (command := command_of(entry.name))
        and f" {raylet.process.pid} " in command
    ]
    raylet.process.kill()
    raylet.process.communicate()
    wait_until(lambda: not any(map(is_alive, servers)), "servers to end with their raylet")


def test_a_forked_worker_finds_what_a_started_one_finds_but_for_what_is_imported(raylet: Raylet) -> None:
    plain = raylet.run(*PLAIN, env={"OMP_NUM_THREADS": "3", "MINE": "x"})
    forked = raylet.run(env={"MINE": "x"})
    assert all(found["argv"].pop().startswith("--out=") for found in (plain, forked))  # where they say it
    assert (plain["parent"], plain["imported"]) == (raylet.process.pid, [])
    assert forked["imported"] == ["numpy", "colorsys"]
    assert f"{forking.__file__} serve" in command_of(forked["parent"])
    for same in ("argv", "path", "cwd", "env", "umask", "name", "file"):
        assert forked[same] == plain[same], same
    assert forked["log"] == plain["log"] == "said by the worker\n"
    assert forked["group"] == forked["started"] != forked["pid"]  # where Ray looks for it
    assert forked["descriptors"] <= plain["descriptors"]


def test_every_worker_draws_numbers_of_its_own(raylet: Raylet) -> None:
    first, second = raylet.run(), raylet.run()
    assert first["parent"] == second["parent"]
    assert not set(first["numbers"]) & set(second["numbers"])


def test_launchers_that_come_together_share_one_server(raylet: Raylet) -> None:
    started = [raylet.start() for _ in range(8)]
    found = [found_by(out, log) for _, out, log in started]
    assert len({worker["pid"] for worker in found}) == 8
    assert len({worker["parent"] for worker in found}) == 1
    for _, out, _ in started:
        end(out)


def test_what_matters_to_imports_has_a_server_of_its_own(raylet: Raylet) -> None:
    plain, *others = (
        raylet.run(),
        raylet.run(env={"PYTHONPATH": "/somewhere"}),
        raylet.run(env={"OMP_NUM_THREADS": "2"}),
        raylet.run(modules="numpy"),
    )
    assert len({worker["parent"] for worker in (plain, *others)}) == 4
    assert raylet.run(env={"ANYTHING": "else"})["parent"] == plain["parent"]


def test_ended_workers_leave_nothing_and_a_server_that_is_gone_is_replaced(raylet: Raylet) -> None:
    found = raylet.run()
    wait_until(lambda: not is_there(found["pid"]), "a worker to be gone")
    os.kill(found["parent"], signal.SIGKILL)
    wait_until(lambda: not is_alive(found["parent"]), "a server to be gone")
    after = raylet.run()
    assert after["parent"] != found["parent"]
    assert after["imported"]


def test_workers_outlive_a_server_that_is_killed(raylet: Raylet) -> None:
    _, out, log = raylet.start()
    found = found_by(out, log)
    os.kill(found["parent"], signal.SIGKILL)
    wait_until(lambda: not is_alive(found["parent"]), "a server to be gone")
    assert raylet.run()["imported"]
    assert is_alive(found["pid"])
    end(out)
    wait_until(lambda: not is_alive(found["pid"]), "a worker to end")


def test_a_server_and_its_workers_end_with_their_raylets(raylet: Raylet) -> None:
    _, out, log = raylet.start()
    found = found_by(out, log)
    raylet.process.kill()
    wait_until(lambda: not is_alive(found["parent"]), "a server to end")
    wait_until(lambda: not is_alive(found["pid"]), "a worker to end")


def test_two_raylets_share_a_server_and_each_takes_only_its_own_workers_with_it(raylet: Raylet) -> None:
    _, out, log = raylet.start()
    found = found_by(out, log)
    other = Raylet(raylet.directory, prefix="other-")  # another node that is simulated on this host
    _, other_out, other_log = other.start()
    of_other = found_by(other_out, other_log)
    assert of_other["parent"] == found["parent"]
    raylet.process.kill()
    wait_until(lambda: not is_alive(found["pid"]), "a worker to end")
    assert is_alive(of_other["pid"])
    other.process.kill()
    other.process.communicate()
    wait_until(lambda: not is_alive(of_other["pid"]), "a worker to end")
    wait_until(lambda: not is_alive(found["parent"]), "a server to end")


@pytest.mark.parametrize("modules", ["numpy,no_such_module", "adaptdl.runtime"], ids=["missing", "imports Ray"])
def test_without_a_server_that_serves_workers_are_started_anew(raylet: Raylet, modules: str) -> None:
    pytest.importorskip("ray")
    found = raylet.run(modules=modules)
    assert (found["parent"], found["pid"], found["imported"]) == (raylet.process.pid, found["started"], [])
    assert "a replica's process is started anew, not forked" in found["log"]
    assert found["env"]["OMP_NUM_THREADS"] == "3"


def test_a_server_that_hangs_is_not_waited_for_and_forks_nothing_later(raylet: Raylet) -> None:
    server = raylet.run()["parent"]
    os.kill(server, signal.SIGSTOP)
    try:
        hasty = (
            "import sys; from adaptdl import forking; forking._IMPORT_TIMEOUT_S = 0.2; forking._launch(*sys.argv[1:])"
        )
        found = raylet.run("-c", hasty, "3", MODULES)
        assert (found["parent"], found["imported"]) == (raylet.process.pid, [])
    finally:
        os.kill(server, signal.SIGCONT)
    assert raylet.run()["parent"] == server  # it has come to the launcher that is gone, and on
    children = Path(f"/proc/{server}/task/{server}/children")
    wait_until(lambda: not children.read_text(), "the last worker to end")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_nobody_elses_server_is_asked_and_nobody_else_is_served(raylet: Raylet) -> None:
    found = raylet.run()
    (path,) = raylet.directory.glob("adaptdl-*[0-9a-f]")
    path.chmod(0o777)
    raylet.directory.chmod(0o777)
    for directory in raylet.directory.parents:
        with contextlib.suppress(PermissionError):
            directory.chmod(directory.stat().st_mode | 0o011)
    asks = f"""
import os, socket
os.setuid(65534)
with socket.socket(socket.AF_UNIX) as server:
    server.settimeout(30)
    server.connect({str(path)!r})
    print(server.recv(1))
"""
    asked = subprocess.run([sys.executable, "-c", asks], capture_output=True, text=True, timeout=60, check=False)
    assert asked.stdout == "b''\n", asked.stderr
    assert raylet.run()["parent"] == found["parent"]

    path.unlink()
    theirs = f"""
import os, socket, sys
os.setuid(65534)
with socket.socket(socket.AF_UNIX) as listener:
    listener.bind({str(path)!r})
    os.chmod({str(path)!r}, 0o777)
    listener.listen()
    print("listens", flush=True)
    sys.stdin.read()
"""
    other = subprocess.Popen([sys.executable, "-c", theirs], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "listens\n"
        found = raylet.run()
        assert found["parent"] == raylet.process.pid
        assert "must be of user 0, but is of 65534" in found["log"]
    finally:
        other.communicate("")


def test_devices_that_an_import_has_opened_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert forking._open_devices() == []
    monkeypatch.setattr(forking, "_DEVICES", ("/dev/zer",))
    with open("/dev/zero", "rb"):
        assert forking._open_devices() == ["/dev/zero"]


def started_by(command: str, raylet: str) -> str:
    """What a shell makes of it, whose parent has this command line."""
    parent = "import subprocess, sys; subprocess.run(['bash', '-c', f'echo {sys.argv[2]}; true'], check=True)"
    done = subprocess.run(
        [sys.executable, "-c", parent, raylet, command], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.strip()


def test_where_the_launcher_is_missing_ray_starts_what_it_would_have_started(monkeypatch: pytest.MonkeyPatch) -> None:
    raylet = "--python_worker_command=/opt/other/bin/python /opt/setup_worker.py --option"
    command = forking.worker_command(["numpy", "scipy"], 4)
    assert command is not None
    launcher = f"{sys.executable} -I -S {forking.__file__} launch 4 numpy,scipy"
    assert started_by(command, raylet) == launcher
    monkeypatch.setattr(forking, "__file__", "/not/there/forking.py")
    command = forking.worker_command(["numpy", "scipy"], 4)
    assert command is not None
    assert started_by(command, raylet) == "/opt/other/bin/python"


def test_paths_that_a_shell_would_take_apart_are_left_to_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/my files/python")
    assert forking.worker_command(["numpy"], 1) is None
