"""From a Python program to a tensor graph, and the graph run fast. Knows Pyro, but nothing of VAEs.

- `replay`    which call runs eagerly, which is captured, which is replayed; where a graph is refused
- `settle`    from the first call of a kind to the one that is captured
- `observe`   an eager call under a profiler: what it executes, and why it may not be captured
- `known`     what is known of libraries' functions: which ask or change the world outside
- `watch`     whether anything that a program can reach has changed between calls
- `reach`     what a program can reach, at any depth
- `places`    where things are held, and how that is compared
- `containers` what tensors and Python's containers hold, place by place
- `storages`  tensors that lie on one another
- `things`    kinds of objects: values to be compared, holders of others, libraries' own
- `arguments` the kind of a call: its tensors, and its plain values
- `trace`     a function of tensors to a clean graph
- `tape`      the operations that run, written down
- `values`    guards for the branches that a function took by a tensor's value
- `graphs`    what nodes of graphs are, and how graphs are cleaned and called
- `kept`      graphs that are kept, each with what it holds for
- `verify`    a graph against an eager call
- `policy`    every threshold and cost constant
- `machine`   what is fastest on this machine, found out once
- `recording` CUDA graphs
- `lower/`    passes from a clean graph to the fastest way of running it
- `step/`     gradients, clipping, update
- `compat`    every private name of torch and Pyro
"""
