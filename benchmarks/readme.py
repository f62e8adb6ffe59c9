"""The README's tables of speed, written from the figures in `benchmarks/results/`.

python -m benchmarks.readme
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- speed -->\n", "<!-- /speed -->"

STEP = {  # the columns of the table of steps, by contender
    "pyro.infer.SVI": "Pyro's SVI",
    "pyro_vae SVI, inductor": "**this SVI**",
    "pyro_vae SVI, graph": "not compiled",
    "PyTorch by hand": "PyTorch by hand",
    "PyTorch by hand, torch.compile": "… and `torch.compile`",
    "NumPyro, svi.update": "NumPyro, a jitted step",
    "NumPyro, fori_loop of 100": "… 100 in one loop",
}
OTHERS = {"epoch": "an epoch of MNIST", "importance": "log p(x)", "memory": "memory", "generate": "generate"}


def main() -> None:
    """Writes the tables between the README's marks."""
    readme = ROOT / "README.md"
    before, rest = readme.read_text(encoding="utf-8").split(BEGIN)
    readme.write_text(before + BEGIN + text() + END + rest.split(END)[1], encoding="utf-8")


def text() -> str:
    """The tables of all machines."""
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))]
    return "".join("\n".join(_machine(report)) + "\n\n" for report in reports if "rows" in report)


def _machine(report: dict[str, Any]) -> Iterable[str]:
    machine, versions = report["machine"], report["versions"]
    named = ("torch", "pyro-ppl", "numpyro", "jax", "pythae", "pyroved")
    yield (
        f"*{machine['cpu']}, {machine['cores']} cores, float32; {report['date']}; "
        + ", ".join(f"{name} {versions[name]}" for name in named)
        + ". Medians of interleaved rounds, believed where all reach the same loss.*\n"
    )
    yield "| a training step, in ms | " + " | ".join(STEP.values()) + " |"
    yield "|---" * (len(STEP) + 1) + "|"
    steps = [(part, case) for part in ("step", "models") for case in _cases(report, part)]
    for part, case in steps:
        rows = {row["contender"]: row for row in report["rows"] if (row["part"], row["case"]) == (part, case)}
        cells = [_cell(rows[name], rows["pyro.infer.SVI"]) if name in rows else "" for name in STEP]
        yield f"| {case} | " + " | ".join(cells) + " |"
    yield "\n| | | figure | times the first |"
    yield "|---|---|---|---|"
    for part, title in OTHERS.items():
        for case in _cases(report, part):
            for i, row in enumerate(r for r in report["rows"] if (r["part"], r["case"]) == (part, case) and r["time"]):
                name = f"**`{row['contender']}`**" if "pyro_vae" in row["contender"] else row["contender"]
                ratio = f"{row['ratio']['median']:.2f}" if row["ratio"] and row["agrees"] else ""
                yield f"| {f'{title}: {case}' if not i else ''} | {name} | {_figure(row)} | {ratio} |"


def _cases(report: dict[str, Any], part: str) -> list[str]:
    return list(dict.fromkeys(row["case"] for row in report["rows"] if row["part"] == part))


def _cell(row: dict[str, Any], reference: dict[str, Any]) -> str:
    if not row["time"]:
        return row["note"]
    shown = f"{row['time']['median'] * 1e3:.3g}"
    if row is reference or not row["ratio"]:
        return shown
    return f"{shown} (×{row['ratio']['median']:.2f})" if row["agrees"] else f"{shown} (losses differ)"


def _figure(row: dict[str, Any]) -> str:
    value = row["time"]["median"]
    if row["unit"] == "bytes":
        return f"{value / 2**20:.0f} MiB"
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"


if __name__ == "__main__":
    main()
