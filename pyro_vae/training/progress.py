"""The bar over epochs."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

import torch


class Progress:
    """A bar over epochs with the loss and the speed, refreshed a few times a second."""

    def __init__(self, total: int, done: int, shown: bool):
        from tqdm.auto import tqdm

        live = sys.stderr.isatty() or "ipykernel" in sys.modules
        every = 0.1 if live else 10.0  # a log gets a line now and then, a screen a moving bar
        self.bar = tqdm(total=total, initial=done, disable=not shown, unit="epoch", mininterval=every)
        self.live = live
        self.last, self.count, self.since = 0.0, 0, time.perf_counter()

    def step(self, loss: torch.Tensor, size: int, how: str) -> None:
        self.count += size
        now = time.perf_counter()
        if self.bar.disable or now - self.last < 0.5:
            return
        speed = self.count / max(now - self.since, 1e-9)
        self.bar.set_postfix_str(f"loss {loss.item():.2f} nats, {speed:,.0f} data/s, {how}", refresh=self.live)
        self.last = now

    def epoch(self, row: dict[str, float], how: str) -> None:
        valid = f", validation ELBO {row['validation_elbo']:.2f}" if "validation_elbo" in row else ""
        self.bar.set_postfix_str(
            f"loss {row['loss']:.2f} nats{valid}, {row['samples_per_second']:,.0f} data/s, {how}", refresh=False
        )
        self.bar.update()
        self.count, self.since = 0, time.perf_counter()


@contextlib.contextmanager
def bar_over(total: int, done: int, shown: bool) -> Iterator[Progress]:
    """A `Progress` over `total` epochs of which `done` are behind, closed at the end."""
    progress = Progress(total, done, shown)
    try:
        yield progress
    finally:
        progress.bar.close()
