"""One process of `startup`: prints its times as JSON. Nothing is imported up here, as imports are what is timed."""

import importlib
import json
import sys
import time

NEEDED = {  # what a user's own script would import
    "pyro": ("torch", "pyro"),
    "eager": ("torch", "pyro", "pyro_vae.svi"),
    "graph": ("torch", "pyro", "pyro_vae.svi"),
    "inductor": ("torch", "pyro", "pyro_vae.svi"),
    "hand": ("torch",),
    "numpyro": ("jax", "numpyro"),
}


def main(kind: str) -> dict[str, float]:
    """Three steps of the tutorial's VAE at batch 128; what the benchmark alone needs is imported off the clock."""
    start = time.perf_counter()
    for name in NEEDED[kind]:
        importlib.import_module(name)
    imports = time.perf_counter() - start

    import torch

    from benchmarks import pairs, torch_peers

    torch.manual_seed(0)
    vae, batches = pairs.Tutorial(), [torch.bernoulli(torch.full((128, 784), 0.3)) for _ in range(3)]
    if kind == "numpyro":
        from benchmarks import numpyro_peers

    start, svi = time.perf_counter(), None
    if kind == "numpyro":
        many = numpyro_peers.update_by_update(vae, batches)
    elif kind == "pyro":
        many = torch_peers.many(torch_peers.pyro_step(vae), batches)
    elif kind == "hand":
        many = torch_peers.many(torch_peers.hand_written_step(vae, compile=True), batches)
    else:
        svi = torch_peers.drop_in(vae, kind)
        many = torch_peers.many(svi.step, batches)
    marks = {"import": imports}
    for stage, steps in (("import to first step", 1), ("import to third step", 2)):
        float(many(steps)[-1])
        marks[stage] = imports + time.perf_counter() - start
    if svi is not None:
        marks |= {"capture": svi._step.capture_seconds, "compile": svi._step.compile_seconds}
    return marks


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
