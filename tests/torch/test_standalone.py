"""The same script by itself, interrupted and resumed, and under torchrun: real processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

import adaptdl.torch as adl

pytestmark = pytest.mark.distributed

SCRIPT = """
import logging, sys, time
import torch
from torch.utils.data import TensorDataset
import adaptdl.torch as adl

torch.manual_seed(0); torch.set_num_threads(1)
inputs = torch.randn(600, 8); targets = (inputs.sum(1) > 0).long()
with adl.open_session(checkpoint_dir=sys.argv[1] if len(sys.argv) > 1 else None):
    loader = adl.AdaptiveDataLoader(TensorDataset(inputs, targets), batch_size=20, shuffle=True)
    module = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    model = adl.AdaptiveDataParallel(module, optimizer)
    correct = adl.Accumulator()
    for epoch in adl.remaining_epochs_until(4):
        for batch, (x, y) in enumerate(loader):
            print("batch", epoch, loader.sampler.position, flush=True)
            optimizer.zero_grad()
            output = model(x)
            torch.nn.functional.cross_entropy(output, y).backward()
            optimizer.step()
            correct["n"] += (output.argmax(1) == y).sum().item()
            time.sleep(float(sys.argv[2]) if len(sys.argv) > 2 else 0)
        with correct.synchronized():
            if adl.current_session().rank == 0:
                print("epoch", epoch, "correct", correct["n"], flush=True)
    if adl.current_session().rank == 0:
        print("sum", sum(p.double().sum().item() for p in module.parameters()), flush=True)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def run(*command: str) -> str:
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, (
        f"{command} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-8000:]}"
    )
    return done.stdout


def total(output: str) -> float:
    return float(re.findall(r"^sum (.*)$", output, re.M)[-1])


def epochs(output: str) -> list[str]:
    return re.findall(r"^epoch .*$", output, re.M)


def test_alone_and_under_torchrun_it_is_the_same_training(script: Path) -> None:
    alone = run(sys.executable, str(script))
    two = run(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script))
    assert epochs(two) == epochs(alone)
    assert total(two) == pytest.approx(total(alone), rel=1e-4)


def test_ctrl_c_and_the_same_command_again_go_on_in_mid_epoch(script: Path, tmp_path: Path) -> None:
    undisturbed = run(sys.executable, str(script))
    checkpoints = tmp_path / "checkpoints"
    process = subprocess.Popen(
        [sys.executable, str(script), str(checkpoints), "0.02"],
        env=environment(), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    seen = ""
    deadline = time.monotonic() + 60
    while "batch 1 200" not in seen:
        seen += process.stdout.readline()
        assert time.monotonic() < deadline, f"no batch 200 of epoch 1 within 60 s: {seen[-200:]}"
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "sum" not in rest
    last = re.findall(r"^batch (.*)$", seen + rest, re.M)[-1]
    again = run(sys.executable, str(script), str(checkpoints))
    epoch, position = map(int, last.split())
    assert re.findall(r"^batch (.*)$", again, re.M)[0] == f"{epoch} {position + 20}"
    assert epochs(seen) + epochs(again) == epochs(undisturbed)
    assert total(again) == total(undisturbed)
    assert [path.name for path in checkpoints.iterdir()] == ["snapshot.pt"]


def test_a_finished_job_has_nothing_left_to_do(script: Path, tmp_path: Path) -> None:
    first = run(sys.executable, str(script), str(tmp_path / "c"))
    second = run(sys.executable, str(script), str(tmp_path / "c"))
    assert "batch" not in second
    assert total(second) == total(first)


def test_a_damaged_snapshot_is_one_clear_error(script: Path, tmp_path: Path) -> None:
    run(sys.executable, str(script), str(tmp_path / "c"))
    path = tmp_path / "c" / "snapshot.pt"
    path.write_bytes(path.read_bytes()[:1000])
    result = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "c")],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode != 0
    assert f"SnapshotError: {path} cannot be resumed" in result.stderr


def test_an_interrupted_script_goes_on_with_its_batch_size(tmp_path: Path) -> None:
    def first_batch(batch: adl.Batch | None) -> int:
        """Of the script started again; it is interrupted in its second step."""
        with adl.open_session(checkpoint_dir=str(tmp_path)) as session:
            loader = adl.AdaptiveDataLoader(TensorDataset(torch.ones(640, 1)), batch_size=4)
            loader.autoscale_batch_size(256)
            module = torch.nn.Linear(1, 1)
            optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
            model = adl.AdaptiveDataParallel(module, optimizer)
            if batch is not None:
                loader.batch = batch
            for _ in adl.remaining_epochs_until(1):
                for (inputs,) in loader:
                    size = loader.current_batch_size
                    optimizer.zero_grad()
                    model(inputs).mean().backward()
                    optimizer.step()
                    if batch is None:
                        return size
                    session.mailbox.interrupted = True
        return 0

    with pytest.raises(KeyboardInterrupt):
        first_batch(adl.Batch(batch_size=64, atomic_batch_size=64))
    assert first_batch(None) == 64


class Best(adl.State):
    def __init__(self) -> None:
        super().__init__()
        self.value = 0.0

    def state_dict(self) -> dict[str, float]:
        return {"value": self.value}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self.value = state_dict["value"]


def test_a_state_is_there_after_the_epochs_of_a_finished_job(tmp_path: Path) -> None:
    for _ in range(2):
        with adl.open_session(checkpoint_dir=str(tmp_path)):
            best = Best()
            for epoch in adl.remaining_epochs_until(2):
                best.value = epoch + 1.0
            assert best.value == 2.0
