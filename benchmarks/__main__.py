"""`python -m benchmarks`: pyro_vae beside its peers, as a table of ratios and a JSON file of all figures."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.harness import Options, environment, say

PARTS = ("step", "models", "epoch", "importance", "memory", "generate", "startup")
MODULES = {"generate": "generation"}


def main() -> None:
    """Runs the parts asked for; several each in a process of its own, so that none inherits another's threads."""
    arguments = _arguments()
    unknown = set(arguments.only) - set(PARTS)
    if unknown:
        sys.exit(f"--only: there is no part {sorted(unknown)[0]!r}; there are {', '.join(PARTS)}.")
    report = environment() | {"quick": arguments.quick, "data": "MNIST" if arguments.data_root else "made up"}
    if len(arguments.only) == 1:
        part = importlib.import_module(f"benchmarks.{MODULES.get(arguments.only[0], arguments.only[0])}")
        report["rows"] = [
            row.as_dict() for row in part.run(Options(arguments.quick, arguments.data_root, arguments.rounds))
        ]
    else:
        report["rows"] = [row for part in arguments.only for row in _in_own_process(part, arguments)]
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    print(table(report))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(PARTS), help=",".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="few rounds on little data: shows that it works")
    parser.add_argument("--rounds", type=int, help="turns of each contender; 7, or 3 if quick")
    parser.add_argument("--data-root", type=Path, help="folder with torchvision's MNIST; otherwise images are made up")
    parser.add_argument("--json", type=Path, help="file for all figures")
    arguments = parser.parse_args()
    arguments.rounds = arguments.rounds or (3 if arguments.quick else 7)
    return arguments


def _in_own_process(part: str, arguments: argparse.Namespace) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        command = [sys.executable, "-m", "benchmarks", "--only", part, "--json", str(file)]
        command += ["--rounds", str(arguments.rounds), *(["--quick"] if arguments.quick else [])]
        command += ["--data-root", str(arguments.data_root)] if arguments.data_root else []
        done = subprocess.run(command, stdout=subprocess.DEVNULL)
        if done.returncode or not file.exists():
            say(f"{part}: failed with status {done.returncode}")
            return [{"part": part, "case": "", "contender": "", "note": f"failed with status {done.returncode}"}]
        return json.loads(file.read_text())["rows"]


def table(report: dict) -> str:
    """One line per contender: its figure, and how many times better than the reference it is."""
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    machine = report["machine"]
    lines = [
        f"{report['date']}, {machine['cpu']}, {machine['cores']} cores, {machine['torch_threads']} torch threads, "
        f"data: {report['data']}" + (", QUICK: figures are noise" if report["quick"] else ""),
        versions,
    ]
    heading = None
    for row in report["rows"]:
        if heading != (row["part"], row["case"]):
            heading = (row["part"], row["case"])
            lines += ["", f"{row['part']}: {row['case']}"]
        figure, ratio = row.get("time"), row.get("ratio")
        shown = f"{_scaled(figure['median'], row['unit']):>12}" if figure else " " * 12
        if ratio and row["agrees"]:
            shown += f" {ratio['median']:7.2f}x [{ratio['min']:.2f} to {ratio['max']:.2f}]".ljust(28)
        else:
            shown += " " * 28
        said = "; ".join(text for text in (row.get("check"), row.get("note")) if text)
        lines.append(f"  {row['contender']:<34}{shown} {said}".rstrip())
    lines += [
        "",
        "x: how many times faster (smaller) than the first of its group, median of the rounds [least to most].",
    ]
    return "\n".join(lines)


def _scaled(value: float, unit: str) -> str:
    if unit == "bytes":
        return f"{value / 2**20:.1f} MiB"
    for factor, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {name}"
    return f"{value:.3g} s"


if __name__ == "__main__":
    main()
