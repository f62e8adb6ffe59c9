"""Faults of the engine that tests know of; a test that passes in spite of its mark fails the suite."""

from __future__ import annotations

import pytest


def fault(reason: str) -> pytest.MarkDecorator:
    """A mark for a test that fails by a fault of the engine."""
    return pytest.mark.xfail(strict=True, reason=reason)
