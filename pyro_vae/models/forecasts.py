"""Futures of sequences, drawn from any pair over steps."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger

from pyro_vae.errors import check_lengths, positive_int
from pyro_vae.pair import PairLike, as_pair, device_of, evaluating, kept_random_state, sample_sites
from pyro_vae.pair.hooks import check_batch


def forecast(
    pair: PairLike,
    x: torch.Tensor,
    steps: int,
    lengths: torch.Tensor | None = None,
    num_samples: int = 1,
    *,
    seed: int | None = None,
) -> torch.Tensor:
    """Draws from p(x_{L+1:L+steps} | x_{1:L}), each sequence going on from its own end L.

    z_{1:L} ~ q(z | x_{1:L}), so the draws are exact where q is the posterior; the model goes on from there.

    Args:
        pair: model and guide of x and lengths, with sites called z_t and x_t, t = 1 ... T, as those of the classes here.
        x: the sequences' beginnings, (N, T, *step_shape), padded at their ends.
        steps: how many steps to go on.
        lengths: (N,) whole numbers from 1 to T; by default all are T.
        num_samples: futures of each sequence.
        seed: makes the draws repeatable without touching torch's random state; None draws from that state.

    Returns:
        shape (num_samples, N, steps, *step_shape).
    """
    pair = as_pair(pair)
    positive_int("steps", steps)
    positive_int("num_samples", num_samples)
    x = x.to(device_of(pair, x.device))
    lengths = x.new_full(x.shape[:1], x.shape[1], dtype=torch.long) if lengths is None else lengths.to(x.device).long()
    check_lengths(lengths, *x.shape[:2])
    check_batch(pair, x, lengths)
    many, ends = x.repeat(num_samples, *(1,) * (x.dim() - 1)), lengths.repeat(num_samples)
    longer = torch.cat([many, torch.zeros_like(many[:, :1]).repeat_interleave(steps, 1)], dim=1)
    state = contextlib.nullcontext() if seed is None else kept_random_state(x.device, seed)
    with evaluating(pair), state:
        latents = sample_sites(poutine.trace(pair.guide).get_trace(many, ends), observed=False)
        past = {name: site["value"] for name, site in latents.items()}
        past |= {f"x_{t}": x_t for t, x_t in enumerate(many.unbind(1), 1)}
        with poutine.trace() as trace, Continued(past, ends):
            poutine.uncondition(pair.model)(longer, ends + steps)
    nodes: Any = trace.trace.nodes
    whole = torch.stack([nodes[f"x_{t}"]["value"] for t in range(1, longer.shape[1] + 1)], dim=1)
    rows = torch.arange(len(ends), device=x.device).unsqueeze(-1)
    future = whole[rows, ends.unsqueeze(-1) + torch.arange(steps, device=x.device)]
    return future.unflatten(0, (num_samples, -1))


class Continued(Messenger):
    """Holds the sites NAME_t at given values in the sequences that reach step t, and draws them in the others.

    Args:
        past: values (N, ...) by site.
        lengths: (N,).
    """

    def __init__(self, past: dict[str, torch.Tensor], lengths: torch.Tensor):
        super().__init__()
        self.past, self.lengths = past, lengths

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.past:
            there = self.lengths >= int(msg["name"].rpartition("_")[2])
            there = there.reshape(-1, *(1,) * msg["fn"].event_dim)
            msg["value"] = self.past[msg["name"]].where(there, msg["fn"]())
            msg["done"] = True
