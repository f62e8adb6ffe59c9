"""Prints the zoo as a Markdown table: each program, what changes in it, and what happens in mode "graph".

python -m tests.engine.table [--mode graph] [--failures] [SUBJECT or NAME ...]
"""

from __future__ import annotations

import argparse
import collections

import torch

from tests.engine.run import Observed, differences, only_here, our_maker, pyro_maker, run
from tests.engine.zoo import ENTRIES, Entry

SILENT, RAISES = "SILENT", "raises only here"
FAILURES = SILENT, RAISES, "differs with a warning", "eager without a warning", "other outcome than stated"


def outcome(entry: Entry, ours: Observed, pyros: Observed, mode: str = "graph") -> tuple[str, str]:
    """What happened, in one of a few words, and what there is to say about it."""
    message = " / ".join(" ".join(one.split()) for one in ours.engine)
    if found := differences(entry, ours, pyros):
        if only_here(ours, pyros):
            return RAISES, found[0]
        if ours.engine:
            return "differs with a warning", f"{'; '.join(found)} ({message})"
        return SILENT, "; ".join(found)
    if len(ours.engine) > entry.warnings:
        return "other outcome than stated", f"{len(ours.engine)} warnings: {message}"
    captured = ours.how.startswith("captured")
    if mode == "graph":
        if not captured and not ours.engine:
            return "eager without a warning", ours.how
        if entry.captured and not captured:
            return "other outcome than stated", message
        if entry.eager and not any(part in message for part in entry.eager):
            return "other outcome than stated", f"{ours.how}; no warning with {entry.eager}: {message or 'none'}"
    if captured:
        return "captured and equal", message
    return "eager and equal", message


def main() -> None:
    """Runs the programs and prints a row for each, then the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("which", nargs="*", help="subjects or names; all unless given")
    parser.add_argument("--mode", default="graph", choices=["auto", "graph", "inductor", "eager"])
    parser.add_argument("--failures", action="store_true", help="print only what breaks the promise")
    options = parser.parse_args()
    torch.set_num_threads(1)
    counts: collections.Counter[str] = collections.Counter()
    print("| program | what changes | outcome | |\n|---|---|---|---|")
    for entry in ENTRIES.values():
        if options.which and not {entry.name, entry.subject} & set(options.which):
            continue
        kind, detail = outcome(entry, run(entry, our_maker(options.mode)), run(entry, pyro_maker), options.mode)
        counts[kind] += 1
        if not options.failures or kind in FAILURES:
            text = detail.replace("|", "\\|").replace("\n", " ")
            print(f"| `{entry.name}` | {entry.description} | {kind} | {text} |", flush=True)
    print()
    for kind, count in counts.most_common():
        print(f"- {kind}: {count}")
    print(f"- all: {counts.total()}")


if __name__ == "__main__":
    main()
