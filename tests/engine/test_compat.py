"""Releases of torch and Pyro that lack a private name: programs train as they do under Pyro, and it is said once."""

import logging

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO

from pyro_vae.engine import compat
from pyro_vae.svi import SVI
from tests.engine.test_svi import X, make_vae


def lacking(error=AttributeError):
    def raises(*args, **kwargs):
        raise error("this release lacks it")

    return raises


def without(name):
    return lambda patch: patch.setattr(compat, name, lacking())


#: What a release lacks, by its name; without these nothing is captured.
NEEDED = {
    "Pyro's stack of handlers": lambda patch: patch.setattr(compat, "handlers", None),
    "the store's parts": without("store_parts"),
    "settings": without("settings"),
    "Pyro's settings": without("_pyro_settings"),
    "hooks of all modules": without("_torch_settings"),
    "the number of modes": without("function_modes"),
    "code of Dice": without("dice_code"),
    "code of the warning": without("warning_codes"),
    "modes that see operations": lambda patch: patch.setattr(compat, "DispatchMode", object),
    "what an operation is made of": without("is_composite"),
}
#: Without these steps are captured, and the optimizer moves the parameters.
OPTIONAL = {
    "fused kernels": lambda patch: patch.delattr(torch, "_fused_adam_"),
    "fused kernels of AdamW": lambda patch: patch.delattr(torch, "_fused_adamw_"),
    "fused kernels that take these arguments": lambda patch: patch.setattr(torch, "_fused_adam_", lacking(TypeError)),
    "hooks of all optimizers": lambda patch: patch.setattr(compat, "_of_all_optimizers", None),
    "hooks of an optimizer": lambda patch: patch.setattr(compat, "has_step_hooks", lambda optimizer: True),
}


@pytest.fixture(autouse=True)
def probes_are_asked_anew():
    compat.has_fused_adam.cache_clear()
    yield
    compat.has_fused_adam.cache_clear()


def trained(kind, **options):
    pyro.clear_param_store()
    torch.manual_seed(1)
    svi = kind(*make_vae(), pyro.optim.Adam({"lr": 0.01}), Trace_ELBO(), **options)
    torch.manual_seed(2)
    losses = [svi.step(X) for _ in range(8)]
    losses.append(svi.evaluate_loss(X))
    return svi, losses, {name: value.detach().clone() for name, value in pyro.get_param_store().items()}


def trains_as_under_pyro(lack, monkeypatch):
    _, wanted, theirs = trained(pyro.infer.SVI)
    with monkeypatch.context() as patch:
        lack(patch)
        svi, losses, params = trained(SVI, compile="graph")
    torch.testing.assert_close(losses, wanted, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(params, theirs, rtol=1e-4, atol=1e-5)
    return svi


@pytest.mark.parametrize("name", NEEDED)
def test_programs_train_eagerly(name, monkeypatch):
    assert compat.is_complete()
    with monkeypatch.context() as patch:
        NEEDED[name](patch)
        assert not compat.is_complete()
    assert trains_as_under_pyro(NEEDED[name], monkeypatch).how == "eager (not captured)"


@pytest.mark.parametrize("name", NEEDED)
def test_one_warning_says_why(name, monkeypatch, caplog):
    with caplog.at_level(logging.WARNING, "pyro_vae"):
        trains_as_under_pyro(NEEDED[name], monkeypatch)
    assert len(caplog.records) == 2  # of the step and of evaluate_loss
    assert "this release of torch or Pyro lacks what capturing needs" in caplog.text


@pytest.mark.parametrize("name", OPTIONAL)
def test_steps_are_captured_and_the_optimizer_moves_the_parameters(name, monkeypatch, caplog):
    with caplog.at_level(logging.WARNING, "pyro_vae"):
        svi = trains_as_under_pyro(OPTIONAL[name], monkeypatch)
    assert svi.how == "captured"
    assert not caplog.records


def test_this_release_has_everything():
    assert compat.is_complete()
    assert compat.has_fused_adam()
    assert compat._of_all_optimizers is not None
    assert compat.handlers is pyro.poutine.runtime._PYRO_STACK
    assert not compat.has_step_hooks(torch.optim.Adam([torch.zeros(1)]))


def test_a_probe_that_finds_nothing_is_none():
    assert compat._probe(lambda: torch.no_such_name) is None
    assert compat._probe(lambda: __import__("no_such_module")) is None


def test_recording_is_off_within_and_as_it_was_behind():
    with compat.Unrecorded():
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()
    with torch.no_grad():
        with compat.Unrecorded():
            pass
        assert not torch.is_grad_enabled()
    with pytest.raises(ValueError, match="no"), compat.Unrecorded():
        raise ValueError("no")
    assert torch.is_grad_enabled()
