"""Hooks of modules, parameters and tensors, added, removed and counting."""

import torch
from torch import nn
from torch.nn.modules import module as modules

from tests.engine.zoo.parameters import once, with_decoder
from tests.engine.zoo.program import (
    alone,
    changes,
    changing,
    decoder_net,
    encoder_net,
    infer,
    observe,
    program,
    usual_model,
)


def removable(*added):
    """A hook at step 1, which is removed at step 10 and added again at step 25."""
    handles = []
    add = lambda: handles.append(added[0]())  # noqa: E731
    return add, lambda: handles.pop().remove(), add


@program()
def forward_hook():
    """A forward hook that doubles the output is added, removed, added."""
    decoder = decoder_net()
    return with_decoder(decoder, *removable(lambda: decoder.register_forward_hook(lambda *given: 2 * given[-1])))


@program()
def forward_pre_hook():
    """A forward pre-hook is added, removed, added."""
    decoder = decoder_net()
    return with_decoder(
        decoder, *removable(lambda: decoder.register_forward_pre_hook(lambda module, given: (2 * given[0],)))
    )


@program()
def hook_of_nested_module():
    """A forward hook of a nested module is added, removed, added."""
    decoder = nn.Sequential(nn.Sequential(decoder_net()), nn.Identity())
    return with_decoder(decoder, *removable(lambda: decoder[0][0].register_forward_hook(lambda *given: 2 * given[-1])))


@program()
def hook_with_state():
    """A forward hook, present from the start, reads a list that changes."""
    decoder, values = decoder_net(), [1.0]
    decoder.register_forward_hook(lambda module, given, out: values[0] * out)
    return changing(lambda x: observe(x, decoder), lambda value: values.__setitem__(0, value))


@program("calls", "hook", "counting")
def hook_that_counts():
    """A forward hook counts its calls, and doubles the output after ten."""
    decoder, calls, limit = decoder_net(), [0], 10 if changes() else 10**9

    def counting(module, given, out):
        calls[0] += 1
        return 2 * out if calls[0] > limit else out

    decoder.register_forward_hook(counting)
    return alone(lambda x: observe(x, decoder), kept=lambda: calls)


@program("history", "hook", visible=False)
def hook_that_records():
    """A forward hook appends activations to a list."""
    decoder, history = decoder_net(), []
    decoder.register_forward_hook(lambda module, given, out: history.append(out.detach().clone()))
    return alone(lambda x: observe(x, decoder), kept=lambda: history)


@program("history", "hook", visible=False)
def hook_that_records_added_later():
    """A recording forward hook is added at step 1 and removed at step 10."""
    decoder, history = decoder_net(), []
    add, remove, _ = removable(
        lambda: decoder.register_forward_hook(lambda module, given, out: history.append(out.detach().clone()))
    )
    return with_decoder(decoder, add, remove, kept=lambda: history)


@program()
def global_forward_hook():
    """A global forward hook of all modules is added, removed, added."""
    decoder, handles = decoder_net(), []

    def double(module, given, out):
        return 2 * out if module is decoder else None

    add = lambda: handles.append(modules.register_module_forward_hook(double))  # noqa: E731
    remove = lambda: handles.pop().remove()  # noqa: E731

    def close():
        while handles:
            remove()

    return with_decoder(decoder, add, remove, add, close=close)


@program()
def gradient_hook():
    """A hook on a weight's gradient is added, removed, added."""
    decoder = decoder_net()
    return with_decoder(decoder, *removable(lambda: decoder.weight.register_hook(lambda gradient: -gradient)))


@program(visible=False)
def gradient_hook_from_start():
    """A hook on a weight's gradient, from the start."""
    decoder = decoder_net()
    decoder.weight.register_hook(lambda gradient: 0.1 * gradient)
    return with_decoder(decoder)


@program("hook", visible=False)
def gradient_hook_that_records():
    """A hook on a weight's gradient appends its norm to a list."""
    decoder, norms = decoder_net(), []
    decoder.weight.register_hook(lambda gradient: norms.append(gradient.norm().item()))
    return with_decoder(decoder, kept=lambda: norms)


@program("hook", visible=False)
def accumulation_hook():
    """A post-accumulate-grad hook counts."""
    decoder, calls = decoder_net(), [0]

    def count(param):
        calls[0] += 1

    decoder.weight.register_post_accumulate_grad_hook(count)
    return with_decoder(decoder, kept=lambda: calls)


@program("hook", visible=False)
def full_backward_hook():
    """A module's full backward hook records gradients."""
    decoder, norms = decoder_net(), []
    decoder.register_full_backward_hook(lambda module, into, out: norms.append(out[0].norm().item()))
    return with_decoder(decoder, kept=lambda: norms)


@program()
def full_backward_hook_later():
    """A module's full backward hook, which turns the gradient, is added, removed, added."""
    decoder = nn.Sequential(nn.Linear(2, 2), decoder_net())
    return with_decoder(
        decoder,
        *removable(lambda: decoder[1].register_full_backward_hook(lambda module, into, out: (-into[0],))),
    )


@program("norms", "hook", "append", "value", visible=False)
def hook_on_latent():
    """The model puts a recording hook on its latent's gradient."""
    decoder, norms = decoder_net(), []

    def model(x):
        z = observe(x, decoder)
        if z.requires_grad:
            z.register_hook(lambda gradient: norms.append(gradient.norm().item()))

    return alone(model, kept=lambda: norms)


@program(visible=False)
def gradient_reversal_on_latent():
    """The model puts a hook on its latent's gradient that turns part of it."""
    decoder = decoder_net()

    def model(x):
        z = observe(x, decoder)
        if z.requires_grad:
            z.register_hook(lambda gradient: 0.5 * gradient)

    return alone(model)


@program(visible=False)
def retained_gradient():
    """The guide keeps its latent's gradient by `retain_grad`."""
    encoder, kept = encoder_net(), {}

    def guide(x):
        z = infer(x, encoder)
        z.retain_grad()
        kept["z"] = z

    return alone(usual_model(), guide, kept=lambda: kept["z"].grad)


@program()
def dispatch_mode_around_steps():
    """A TorchFunctionMode of the user around some steps."""
    from torch.overrides import TorchFunctionMode

    class Doubled(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            return 2 * out if function is nn.functional.linear else out

    decoder, active = decoder_net(), [False]

    def take(run, step):
        if active[0]:
            with Doubled():
                return run.svi.step(*run.args(step))
        return run.svi.step(*run.args(step))

    made = changing(lambda x: observe(x, decoder), lambda value: active.__setitem__(0, not active[0]))
    made.take = take
    return made


@program(visible=False)
def saved_tensor_hooks():
    """Saved-tensor hooks of the user around each step count packs."""
    packs, decoder = [0], decoder_net()

    def pack(tensor):
        packs[0] += 1
        return tensor

    def take(run, step):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            return run.svi.step(*run.args(step))

    return alone(lambda x: observe(x, decoder), take=take, kept=lambda: packs)


@program()
def once_is_enough():
    """A hook that removes itself after its first call."""
    decoder = decoder_net()

    def add():
        handle = decoder.register_forward_hook(lambda *given: (handle.remove(), 3 * given[-1])[1])

    made = alone(lambda x: observe(x, decoder), between=once(add, add, add))
    return made
