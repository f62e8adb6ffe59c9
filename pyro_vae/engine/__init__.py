"""From a Python program to a tensor graph, and the graph run fast. Knows Pyro, but nothing of VAEs.

- `replay`    which call runs eagerly, which is captured, which is replayed
- `observe`   an eager call under a profiler: what it executes, and why it may not be captured
- `watch`     what a program can reach, and whether it has changed between calls
- `arguments` the kind of a call: its tensors, and its plain values
- `trace`     a function of tensors to a clean graph, with guards for the branches it took
- `verify`    a graph against an eager call
- `policy`    every threshold and cost constant
- `lower`     passes from a clean graph to the fastest way of running it
- `step`      gradients, guard, clip, update
- `compat`    every private name of torch and Pyro
"""
