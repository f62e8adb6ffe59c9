"""Every threshold and cost constant of the engine, with how it was measured.

Decisions depend on counts and on sizes of graphs, never on a clock, so that one seed gives the same run twice.
`python -m benchmarks.policy` measures the constants marked (measured) on two cores.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

#: Eager calls of a kind before "auto" captures it, where the number of calls is not known. Capturing takes as long as about
#: 100 short eager steps, so a run that stops before has lost nothing, and one that goes on loses at most as much again.
CALLS_BEFORE_CAPTURE = 100
#: Calls that repay capturing, where their number is known.
CALLS_WORTH_CAPTURE = 100
#: Observed calls that may change what the program reaches, as first calls do; a program that goes on is not captured.
SETTING_UP = 2
#: Settings of the watched values for which graphs are kept; a value that changes more often is one that always changes.
MOST_SETTINGS = 8
#: Kinds of batches with a graph of their own.
MOST_KINDS = 32
#: Values of one plain argument after which it counts as one that always changes.
MOST_VALUES = 8
#: Places that are watched at most; comparing a thousand takes about 15 microseconds (measured).
MOST_PLACES = 20_000
#: Places that are looked at anew at each call, where they must not be held; a thousand take about 5 milliseconds.
MOST_UNHELD = 1_000
#: Bytes of a NumPy array that are compared at each call.
MOST_BYTES = 1 << 16
#: Calls with a false guard, after which a graph is given up, if they are more than this share of all calls.
MOST_MISSES, SHARE_OF_MISSES = 10, 0.25
#: Numbers of a tensor that a graph may have burnt in under a guard.
MOST_BURNT = 64
#: Lengths of packed sequences that a graph may have burnt in.
MOST_LENGTHS = 4096


def is_verified(calls: int) -> bool:
    """Whether the next replay, after so many, is compared with an eager call: the 1st, 2nd, 10th, 30th, 100th, 300th ..."""
    if calls in (0, 1):
        return True
    while calls % 10 == 0 and calls > 30:
        calls //= 10
    return calls in (10, 30)


# --- Inductor -------------------------------------------------------------------------------------------------------

#: Share of a call that compiling saves (measured).
GAIN_OF_COMPILING = 1 / 3


def seconds_to_compile(graph: fx.Graph) -> float:
    """About how long compiling takes on two cores without a cache (measured)."""
    return 2.0 + 0.04 * len(graph.nodes)


def seconds_of(graph: fx.Graph, products: dict[object, Callable[..., int]]) -> float:
    """About how long one run of the graph takes on two cores, from the sizes in it alone (measured).

    Args:
        graph: nodes with shapes.
        products: the operations that are matrix products, with a function of a node that gives the size of the sum.
    """
    seconds = 0.0
    for node in graph.nodes:
        value = node.meta.get("val")
        if node.op != "call_function" or not hasattr(value, "numel"):
            continue
        seconds += 4e-6 + value.numel() / 2e9
        if node.target in products:
            seconds += 2 * value.numel() * products[node.target](node) / 2e11
    return seconds


def compiling_pays(calls: int, seconds: float, graph: fx.Graph) -> bool:
    """Whether so many calls of a graph that takes so long repay the time for compiling it."""
    return calls * seconds * GAIN_OF_COMPILING >= seconds_to_compile(graph)
