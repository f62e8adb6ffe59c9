"""Inductor, torch's compiler, on a captured graph."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib
import logging
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import fx

from pyro_vae.engine.trace import written
from pyro_vae.engine.values import CaptureError


def has_compiler(device: torch.device) -> bool:
    """Whether Inductor finds what it compiles with: a C++ compiler for the CPU, Triton for CUDA."""
    if device.type == "cuda":
        return torch.utils._triton.has_triton()
    if device.type != "cpu":
        return False
    try:
        from torch._inductor.cpp_builder import get_cpp_compiler

        return shutil.which(get_cpp_compiler()) is not None
    except Exception:  # a private function, which raises errors of its own where there is no compiler
        return False


@functools.cache
def _vector_instructions() -> dict[str, Any]:
    """Spares Inductor its trial compilations of each set of vector instructions, a quarter of a first compilation.

    Which sets the processor has, torch knows; what is left to see is that the compiler takes their flags.
    """
    from torch._inductor import config
    from torch._inductor.cpp_builder import get_cpp_compiler

    if getattr(config.cpp, "vec_isa_ok", False) is not None:  # set by the user, or unknown to this torch
        return {}
    flags = ["-mavx2", "-mfma", "-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mavx512vnni"]
    known = subprocess.run([get_cpp_compiler(), *flags, "-x", "c++", "-E", os.devnull], capture_output=True)
    return {"cpp.vec_isa_ok": True} if known.returncode == 0 else {}


@functools.cache
def _begin_with_headers() -> None:
    """Has the compiler begin with what all generated code includes: without a cache that lasts as long as the rest of it,
    and Inductor would only ask for it once its own Python is through."""
    from torch._inductor.codecache import CppPythonBindingsCodeCache
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    def compile_headers() -> None:
        nothing = '#include <torch/csrc/inductor/cpp_prefix.h>\nextern "C" void kernel(float* x) {}'
        with contextlib.suppress(Exception):  # Inductor will come upon it in its turn, and say so
            CppPythonBindingsCodeCache.load_pybinding_async(["float*"], nothing, submit_fn=lambda compile_kernel: None)

    for name in ("pre_grad", "joint_graph", "post_grad"):  # which two threads must not import at once
        importlib.import_module(f"torch._inductor.fx_passes.{name}")
    pick_vec_isa()  # notes flags in objects of its own as it tries them, and must not do so in two threads at once
    context = contextvars.copy_context()  # holds Inductor's settings
    threading.Thread(target=context.run, args=(compile_headers,), daemon=True).start()


@contextlib.contextmanager
def _set_for_inductor(tensors: list[torch.Tensor], on_cpu: bool) -> Iterator[list[torch.Tensor]]:
    """Draws as in eager code, and compiled graphs kept for later runs; gives what it is to take for the tensors."""
    from torch._guards import TracingContext, tracing
    from torch._inductor import config
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    # fallback_random: draws that stay in the graph come from torch's own generator.
    options = {"fallback_random": True} | (_vector_instructions() if on_cpu else {})
    # Only where there is an environment for shapes does Inductor look for a graph that it has compiled before.
    mode = FakeTensorMode(shape_env=ShapeEnv())
    # What it knows a graph by is, in older versions of torch, not all that its code hangs on.
    tag, processor = torch.compiler.config.cache_key_tag, torch.backends.cpu.get_cpu_capability()
    keys = torch.compiler.config.patch(cache_key_tag=f"{tag} {processor} {torch.get_num_threads()} threads")
    # AOTAutograd's own cache would keep the generated code from us.
    apart = torch._functorch.config.patch(enable_autograd_cache=False)
    with config.patch(options), keys, apart, tracing(TracingContext(mode)):
        yield [mode.from_tensor(tensor, static_shapes=True) for tensor in tensors]


def compile_graph(graph: fx.Graph, tensors: list[torch.Tensor]) -> Callable[..., Sequence[torch.Tensor]]:
    """The graph as one compiled function of tensors like these.

    Raises:
        CaptureError: if Inductor can't compile it; its own message follows.
    """
    from torch._inductor import compile_fx

    plain: list[Any] = []  # what runs the generated code, where that takes and gives what the graph does

    def inner(inside: fx.GraphModule, examples: Sequence[Any], **settings: Any) -> Any:
        whole = len(examples) == len(tensors) and _count_outputs(inside.graph) == outputs
        code = compile_fx.compile_fx_inner(inside, examples, **settings)
        plain.append(getattr(code, "current_callable", None) if whole else None)
        return code

    outputs, writes = _count_outputs(graph), written(graph)
    on_cpu = all(tensor.device.type == "cpu" for tensor in tensors)
    inductor_log = logging.getLogger("torch.utils.cpp_extension")
    level = inductor_log.level
    inductor_log.setLevel(logging.ERROR)  # it warns of a CUDA toolkit without a card
    try:
        with torch.no_grad(), _set_for_inductor(tensors, on_cpu) as examples:
            if on_cpu:
                _begin_with_headers()
            compiled = compile_fx.compile_fx(fx.GraphModule(torch.nn.Module(), graph), examples, inner_compile=inner)
    except Exception as error:
        raise CaptureError(f"Inductor can't compile the graph: {str(error).splitlines()[0]}") from error
    finally:
        inductor_log.setLevel(level)
    # Around it come switches for autocast and autograd, and notes of what is written: 0.05 ms of a training step.
    if not on_cpu or len(plain) != 1 or plain[0] is None or any(map(torch.is_autocast_enabled, ("cpu", "cuda"))):
        return compiled
    (code,) = plain
    if not writes:
        return lambda *arguments: code([*arguments])

    def run(*arguments: torch.Tensor) -> Sequence[torch.Tensor]:
        outputs = code([*arguments])
        torch.autograd.graph.increment_version([arguments[i] for i in writes])
        return outputs

    return run


def _count_outputs(graph: fx.Graph) -> int:
    return len(next(iter(reversed(graph.nodes))).args[0])
