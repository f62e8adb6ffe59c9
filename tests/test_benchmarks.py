"""The benchmarks' arithmetic, and that the README shows the figures that are kept."""

import itertools
import json
import os
from pathlib import Path

import pytest

from benchmarks import harness, readme

ROOT = Path(__file__).parent.parent


def test_the_readme_shows_the_kept_figures():
    shown = (ROOT / "README.md").read_text(encoding="utf-8").split(readme.BEGIN)[1].split(readme.END)[0]
    assert shown == readme.text()
    assert "pyro_vae" in shown


@pytest.mark.parametrize("path", sorted(readme.RESULTS.glob("*.json")), ids=lambda path: path.name)
def test_kept_figures_say_where_they_come_from(path):
    report = json.loads(path.read_text(encoding="utf-8"))
    assert report["versions"].keys() >= {"torch", "pyro-ppl", "python"}
    assert report["machine"]["cpu"]
    assert not report.get("quick")
    for row in report.get("rows", []):
        assert row["time"] is None or row["time"]["min"] <= row["time"]["median"] <= row["time"]["max"]


def test_turns_are_interleaved_and_ratios_taken_round_by_round():
    order = []

    def turn(name, figures):
        def one():
            order.append(name)
            return figures.pop(0)

        return one

    figures = harness.interleave({"a": turn("a", [4.0, 8.0]), "b": turn("b", [2.0, 2.0])}, rounds=2)
    assert order == ["a", "b", "a", "b"]
    first, second = harness.rows("part", "case", figures, reference="a")
    assert first.ratios == [1.0, 1.0]
    assert second.ratios == [2.0, 4.0]
    assert second.as_dict()["ratio"] == {"median": 3.0, "min": 2.0, "max": 4.0}


def counter(start):
    """What a contender is: made once in its process, called many times."""
    numbers = itertools.count(start)

    def call(wanted):
        if wanted == "fail":
            raise ValueError("no such turn")
        return next(numbers), os.getpid()

    return call


def test_a_contender_apart_keeps_its_state_and_tells_its_errors():
    apart = harness.Apart(counter, 5)
    try:
        (first, there), (second, again) = apart("turn"), apart("turn")
        assert (first, second) == (5, 6)
        assert there == again != os.getpid()
        with pytest.raises(RuntimeError, match="ValueError: no such turn"):
            apart("fail")
        assert apart("turn")[0] == 7
    finally:
        apart.close()
    assert apart.process.exitcode == 0


def test_a_time_is_believed_where_losses_agree():
    row = harness.Row("part", "case", "peer")
    harness.compare(row, 101.0, 100.0)
    assert row.agrees
    harness.compare(row, 103.0, 100.0)
    assert not row.agrees
    assert "loss differs: 103.000, wanted 100.000" in row.check


def test_a_missing_peer_is_named():
    assert harness.missing("part", "case", "json") is None
    assert harness.missing("part", "case", "no_such_package").note == "not installed"
