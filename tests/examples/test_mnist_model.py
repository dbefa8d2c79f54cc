from __future__ import annotations

import torch
from torch import optim

from mnist_model import ConvNet, count_correct, train


def test_a_few_digits_are_learnt_by_heart_in_plain_pytorch() -> None:
    torch.manual_seed(0)
    images, labels = torch.randn(16, 1, 28, 28), torch.arange(16) % 10
    model = ConvNet()
    optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.5)
    before = count_correct(model, images, labels)
    train(model, optimizer, [(images, labels)] * 60)
    assert before < 16
    assert count_correct(model, images, labels) == 16
