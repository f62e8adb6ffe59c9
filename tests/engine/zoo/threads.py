"""SVIs and Pyro's functions in several threads."""

import threading

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.util import torch_item

from tests.engine.zoo.program import (
    alone,
    batches,
    program,
    usual_guide,
    usual_model,
)
from tests.engine.zoo.svi_uses import usual

quiet = program(visible=False)


@quiet
def threads_in_turn():
    """Two SVIs in two threads, which take turns."""
    made, others, data = usual(), [], batches()
    made.start = lambda: others.append(made.make(made.model, made.guide, pyro.optim.SGD({"lr": 1e-3}), Trace_ELBO()))

    def in_thread(function, *args):
        results = []

        def work():
            torch.set_num_threads(1)
            try:
                results.append(function(*args))
            except Exception as error:
                results.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        if isinstance(results[0], Exception):
            raise results[0]
        return results[0]

    made.take = lambda run, step: [run.svi.step(data[step % 3]), in_thread(others[0].step, data[step % 3])]
    return made


@quiet
def functions_of_pyro_in_other_thread():
    """Another thread calls Pyro's functions and checks distributions all the while."""
    stop, seen = threading.Event(), set()

    def watch():
        while not stop.is_set():
            seen.add(type(torch_item(torch.ones(()))).__name__)
            try:
                dist.Normal(0.0, -1.0)
                seen.add("not validated")
            except ValueError:
                seen.add("validated")
            stop.wait(0.0005)

    thread = threading.Thread(target=watch)

    def close():
        stop.set()
        thread.join()

    made = alone(usual_model(), usual_guide(), kept=lambda: seen, close=close)
    made.start = thread.start
    return made
