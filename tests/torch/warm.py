"""Loaded once by the server that all processes of the tests are forked from."""

import torch

from adaptdl.torch.warm_up import warm_up

torch.set_num_threads(1)
warm_up()
