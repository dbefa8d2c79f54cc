"""One script: by itself, under torchrun, and interrupted."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = str(Path(__file__).parents[2] / "examples" / "train_mnist.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
LIMIT_S = 100.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(360)]


def accuracies(output: str) -> list[float]:
    return [float(number) for number in re.findall(r"mean_accuracy=([\d.]+)", output)]


def run(*arguments: str, launcher: list[str] | None = None) -> list[float]:
    """The accuracy after each epoch of a run that ends by itself."""
    command = [*(launcher or [sys.executable]), SCRIPT, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr
    return accuracies(done.stderr)


@pytest.mark.distributed
def test_one_process_and_two_under_torchrun_learn_the_same() -> None:
    arguments = ["--fixed-bs", "--epochs", "3"]
    alone, together = run(*arguments), run(*arguments, launcher=TORCHRUN)
    assert len(alone) == 3
    assert alone[-1] >= 0.93
    assert together == pytest.approx(alone, abs=0.01)


def test_a_batch_that_grows_learns_as_well() -> None:
    assert max(run("--epochs", "6")) >= 0.93


def test_ctrl_c_and_the_same_command_again_end_like_an_undisturbed_run(tmp_path: Path) -> None:
    arguments = ["--fixed-bs", "--epochs", "5"]
    interrupted = subprocess.Popen(
        [sys.executable, SCRIPT, *arguments, "--checkpoint-dir", str(tmp_path)],
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    assert interrupted.stderr is not None
    first = interrupted.stderr.readline()
    interrupted.send_signal(signal.SIGINT)
    rest = interrupted.communicate(timeout=LIMIT_S)[1]
    assert interrupted.returncode == 130, rest
    before = accuracies(first + rest)
    assert 1 <= len(before) < 5
    assert before + run(*arguments, "--checkpoint-dir", str(tmp_path)) == pytest.approx(run(*arguments), abs=0.005)
