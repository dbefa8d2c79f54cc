from __future__ import annotations

import torch
from torch import optim
from torch.utils.data import DataLoader

from mnist_data import load_mnist
from mnist_model import ConvNet, count_correct, train


def test_the_model_learns_digits_in_plain_pytorch() -> None:
    torch.manual_seed(0)
    train_set, test_set = load_mnist()
    model = ConvNet()
    optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.5)
    for _ in range(3):
        train(model, optimizer, DataLoader(train_set, batch_size=64, shuffle=True))
    images, labels = test_set.tensors
    assert count_correct(model, images, labels) >= 900
