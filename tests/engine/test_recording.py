"""CUDA graphs, as far as they can be tested without a GPU."""

import torch

from pyro_vae.engine.recording import Recorded


def test_nothing_is_recorded_off_the_gpu():
    recorded = Recorded(lambda x: x + 1)
    assert [recorded(torch.zeros(1)).item() for _ in range(6)] == [1.0] * 6
    assert recorded.graph is None
