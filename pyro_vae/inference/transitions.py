"""Hamiltonian Monte Carlo on many chains at once, and step sizes found on chains of their own."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from pyro_vae.inference.paths import Chains, State

#: Acceptance to which step sizes are tuned; the optimum is flat between 0.6 and 0.9 (Betancourt et al. 2014).
TARGET = 0.75


def hamiltonian_step(
    chains: Chains, state: State, beta: float, step_size: torch.Tensor, leapfrog_steps: int
) -> tuple[State, torch.Tensor]:
    """One step of Hamiltonian Monte Carlo that leaves f_β as it is (Neal 2011, section 3.2).

    Args:
        chains: the densities.
        state: where the chains are.
        beta: between f_0 and f_1.
        step_size: of each coordinate, (D,); chains jitter it by up to a fifth, so that no trajectory closes on itself.
        leapfrog_steps: how many, each of which takes one gradient.

    Returns:
        the new state, and the probability with which each chain accepted its proposal, (K, N).
    """
    shape = state.log_joint.shape
    step = step_size * (0.8 + 0.4 * torch.rand(*shape, 1, dtype=state.u.dtype, device=state.u.device))
    momentum = torch.randn_like(state.u)
    energy = state.log_density(beta) - momentum.square().sum(-1) / 2
    slope = _slope_at(beta, state.slope_start, state.slope_joint)
    u = state.u
    proposal = state
    for i in range(leapfrog_steps):
        momentum = momentum + (0.5 * step if i == 0 else step) * slope
        u = u + step * momentum
        if i < leapfrog_steps - 1:
            slope = _slope_at(beta, *chains.slopes(u))
        else:
            proposal = chains.at(u)
    slope = _slope_at(beta, proposal.slope_start, proposal.slope_joint)
    momentum = momentum + 0.5 * step * slope
    change = proposal.log_density(beta) - momentum.square().sum(-1) / 2 - energy
    # A trajectory that ran off to where the density is no number is rejected.
    probability = change.nan_to_num(nan=-torch.inf, posinf=0.0).clamp(max=0.0).exp()
    accepted = torch.rand_like(probability) < probability
    return proposal.where(accepted, state), probability


def _slope_at(beta: float, slope_start: torch.Tensor, slope_joint: torch.Tensor) -> torch.Tensor:
    return torch.lerp(slope_start, slope_joint, beta)


@dataclass
class StepSizes:
    """Step sizes that follow the acceptance from one temperature to the next.

    Attributes:
        log_step: log of the common factor.
        scale: of each coordinate, (D,): how wide the chains of one datum are spread there.
        kept: the step sizes used so far, each (D,).
    """

    scale: torch.Tensor
    log_step: float = -1.0
    kept: list[torch.Tensor] = field(default_factory=list)

    @property
    def now(self) -> torch.Tensor:
        """The step sizes to use, (D,)."""
        return self.scale * torch.tensor(self.log_step).exp().to(self.scale)

    def settle(self, chains: Chains, state: State, beta: float, leapfrog_steps: int) -> State:
        """Moves chains at one temperature until their step size is found."""
        self.follow(state)
        for _ in range(30):
            before = self.log_step
            state, probability = hamiltonian_step(chains, state, beta, self.now, leapfrog_steps)
            self.learn(probability, rate=2.0)
            if abs(self.log_step - before) < 0.1:
                break
        return state

    def follow(self, state: State) -> None:
        """Takes the scale from the chains: the geometric mean over data of each coordinate's spread within a datum."""
        if len(state.u) < 4:
            return
        spread = state.u.var(0).clamp_min(1e-12).log().mean(0).div(2).exp()
        # A running mean over temperatures, as few chains tell little of a spread.
        self.scale = spread if not self.kept else self.scale.lerp(spread, 0.3)

    def learn(self, probability: torch.Tensor, rate: float = 0.5) -> None:
        """A stochastic-approximation step of the log step size towards the target acceptance."""
        self.log_step += rate * (probability.mean().item() - TARGET)
