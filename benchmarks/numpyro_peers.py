"""The tutorial's VAE in NumPyro, starting from the weights of the PyTorch one; imported only if NumPyro is there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import torch
from numpyro import handlers
from numpyro.infer.util import log_density

from benchmarks.pairs import Tutorial
from benchmarks.torch_peers import LR

numpyro.set_platform("cpu")


class NumpyroTutorial:
    """Model and guide of `pairs.Tutorial`, with that one's weights to start from."""

    def __init__(self, vae: Tutorial):
        self.weights = {name: tensor.detach().numpy() for name, tensor in vae.state_dict().items()}

    def linear(self, name: str, x: Any) -> Any:
        weight = numpyro.param(f"{name}.weight", jnp.asarray(self.weights[f"{name}.weight"]))
        return x @ weight.T + numpyro.param(f"{name}.bias", jnp.asarray(self.weights[f"{name}.bias"]))

    def model(self, x: Any) -> None:
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("latent", dist.Normal(jnp.zeros(Tutorial.latent), 1.0).to_event(1))
            logits = self.linear("decoder.2", jax.nn.softplus(self.linear("decoder.0", z)))
            numpyro.sample("obs", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(self, x: Any) -> None:
        hidden = jax.nn.softplus(self.linear("encoder.hidden.0", x))
        loc, scale = self.linear("encoder.loc", hidden), jnp.exp(self.linear("encoder.log_scale", hidden))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("latent", dist.Normal(loc, scale).to_event(1))

    def svi(self) -> Any:
        return numpyro.infer.SVI(self.model, self.guide, numpyro.optim.Adam(LR), numpyro.infer.Trace_ELBO())


def update_by_update(vae: Tutorial, batches: list[torch.Tensor]) -> Callable[[int], list[Any]]:
    """A jitted `svi.update` per step, as NumPyro's own VAE example makes it for streamed batches."""
    svi = NumpyroTutorial(vae).svi()
    arrays = [jnp.asarray(batch.numpy()) for batch in batches]
    update = jax.jit(svi.update)
    state, position = svi.init(jax.random.PRNGKey(0), arrays[0]), 0

    def run(count: int) -> list[Any]:
        nonlocal state, position
        losses = []
        for i in range(position, position + count):
            state, loss = update(state, arrays[i % len(arrays)])
            losses.append(loss)
        position += count
        jax.block_until_ready((state, losses))
        return losses

    return run


def device_loop(vae: Tutorial, batches: list[torch.Tensor], updates: int = 100) -> Callable[[int], list[Any]]:
    """`jax.lax.fori_loop` over `updates` updates under one jit; counts are rounded up to whole loops."""
    svi = NumpyroTutorial(vae).svi()
    stacked = jnp.asarray(torch.stack(batches).numpy())
    state, position = svi.init(jax.random.PRNGKey(0), stacked[0]), 0

    @jax.jit
    def loop(state: Any, start: int, stacked: Any) -> Any:
        def body(i: int, carry: Any) -> Any:
            state, losses = carry
            state, loss = svi.update(state, stacked[(start + i) % len(stacked)])
            return state, losses.at[i].set(loss)

        return jax.lax.fori_loop(0, updates, body, (state, jnp.zeros(updates)))

    def run(count: int) -> list[Any]:
        nonlocal state, position
        parts = []
        for _ in range(-(-count // updates)):
            state, losses = loop(state, position, stacked)
            parts.append(losses)
            position += updates
        jax.block_until_ready((state, parts))
        return list(np.concatenate([np.asarray(part) for part in parts]))

    return run


def log_likelihood(vae: Tutorial, num_samples: int, images_at_once: int) -> Callable[[torch.Tensor], np.ndarray]:
    """log p(x) of each image by importance sampling, vmapped over samples and jitted."""
    pair = NumpyroTutorial(vae)

    def log_weight(key: Any, x: Any) -> Any:
        def one(row: Any, row_key: Any) -> Any:
            log_q, trace = log_density(handlers.seed(pair.guide, row_key), (row,), {}, {})
            log_p, _ = log_density(pair.model, (row,), {}, {"latent": trace["latent"]["value"]})
            return log_p - log_q

        return jax.vmap(one)(x[:, None], jax.random.split(key, len(x)))

    @jax.jit
    def chunk(key: Any, x: Any) -> Any:
        log_weights = jax.vmap(log_weight, in_axes=(0, None))(jax.random.split(key, num_samples), x)
        return jax.nn.logsumexp(log_weights, axis=0) - jnp.log(num_samples)

    def run(x: torch.Tensor) -> np.ndarray:
        keys = jax.random.split(jax.random.PRNGKey(1), -(-len(x) // images_at_once))
        pieces = [
            chunk(key, jnp.asarray(part.numpy())) for key, part in zip(keys, x.split(images_at_once), strict=True)
        ]
        return np.concatenate([np.asarray(piece) for piece in pieces])

    return run
