"""`SVI`, a drop-in for `pyro.infer.SVI` that captures the step once and replays it.

from pyro_vae.svi import SVI    # instead of: from pyro.infer import SVI
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import torch
from pyro.infer import ELBO
from pyro.infer.util import torch_item
from pyro.optim import PyroOptim

from pyro_vae.engine.replay import COMPILE, Compile, Replay
from pyro_vae.engine.step.gradients import Gradients
from pyro_vae.engine.step.update import Update
from pyro_vae.errors import InputError, one_of


class SVI(pyro.infer.SVI):
    """Stochastic variational inference with the signature and the numbers of `pyro.infer.SVI`, compiled.

    Steps run as Pyro's do until capturing them pays; then a graph captured from one is replayed, and verified against eager
    steps at growing intervals. Parameters, the param store and the optimizer's state are the ones that Pyro's own SVI
    would use. Programs that cannot be captured run eagerly; one warning names the reason.

    Args:
        model: a Pyro program.
        guide: a Pyro program.
        optim: an optimizer of `pyro.optim`, or a torch optimizer over the parameters.
        loss: a Pyro ELBO, or a function of model, guide and arguments.
        loss_and_grads: as in Pyro.
        compile: "auto" captures after 100 steps, and compiles the graph by Inductor once that pays; "graph" captures at the
            third step and does not compile; "inductor" does both at once; "eager" captures nothing.

    Raises:
        InputError: if `optim` is no optimizer.

    Example:
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     mean = pyro.param("mean", torch.tensor(0.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(mean, 1.0), obs=x)
        >>> svi = SVI(model, lambda x: None, pyro.optim.Adam({"lr": 0.1}), pyro.infer.Trace_ELBO())
        >>> losses = [svi.step(torch.ones(10)) for _ in range(50)]
        >>> round(losses[-1], 1)
        9.2
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        optim: PyroOptim | torch.optim.Optimizer,
        loss: ELBO | Callable[..., Any],
        loss_and_grads: Callable[..., Any] | None = None,
        num_samples: int = 0,
        num_steps: int = 0,
        *,
        compile: Compile = "auto",
        **kwargs: Any,
    ):
        if not isinstance(optim, (PyroOptim, torch.optim.Optimizer)):
            raise InputError(f"optim={optim!r} must be an optimizer of pyro.optim or of torch.optim.")
        one_of("compile", compile, COMPILE)
        stand_in = optim if isinstance(optim, PyroOptim) else pyro.optim.Adam({})
        super().__init__(model, guide, stand_in, loss, loss_and_grads, num_samples, num_steps, **kwargs)
        self.optim = optim
        self._gradients = Gradients(self._programs)
        self._step = Replay(
            self._gradients,
            self._programs,
            compile=compile,
            what="SVI's step",
            looks_at_loss=True,
            plain=self._plain_step,
        )
        self._loss = Replay(
            self._evaluated,
            self._programs_of_loss,
            compile=compile,
            what="SVI's evaluate_loss",
            looks_at_loss=True,
        )

    @property
    def optim(self) -> PyroOptim | torch.optim.Optimizer:
        """What takes the steps; another may be put in its place."""
        return self._update.optim

    @optim.setter
    def optim(self, optim: PyroOptim | torch.optim.Optimizer) -> None:
        self._update = Update(optim)

    @property
    def how(self) -> str:
        """How steps are run by now: eagerly, captured, or compiled."""
        return self._step.how

    def step(self, *args: Any, **kwargs: Any) -> float:
        """Takes a gradient step and returns the loss."""
        graph, result = self._step.flat(args, kwargs)
        if isinstance(result, _Taken):
            return result.loss
        if graph is None:
            loss, gradients = result
            params = self._gradients.params
        else:
            loss, gradients = graph.captured.nested(result)
            params = graph.params
        self._update(params, gradients)
        return _number(loss)

    def _programs(self) -> tuple[Any, Any, Any]:  # which users may replace
        return self.model, self.guide, self.loss_and_grads

    def _programs_of_loss(self) -> tuple[Any, Any, Any]:
        return self.model, self.guide, self.loss

    def _evaluated(self, *args: Any, **kwargs: Any) -> Any:
        return self.loss(self.model, self.guide, *args, **kwargs)

    def _plain_step(self, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self.optim, PyroOptim):
            return _Taken(super().step(*args, **kwargs))
        return self._gradients(*args, **kwargs)

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> float:
        """The loss, without gradients."""
        with torch.no_grad():
            return _number(self._loss(*args, **kwargs))


class _Taken(NamedTuple):
    """The loss of a step that Pyro has taken."""

    loss: Any


def _number(loss: Any) -> Any:
    """The loss as Pyro gives it: a float; several for objectives with several."""
    return type(loss)(map(torch_item, loss)) if isinstance(loss, tuple) else torch_item(loss)
