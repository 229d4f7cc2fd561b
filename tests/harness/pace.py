"""What makes a run shorter: long modules first, and no walk through what stays until the end at each collection of garbage."""

from __future__ import annotations

import gc
from itertools import groupby

import pytest

SECONDS = {"browser": 4.0, "training": 4.0, "slow": 3.0}
"""What a test with this mark takes, roughly; one without, a tenth of a second."""


# Last: after pytest-randomly has shuffled, and pytest has put tests together that share a fixture with parameters.
@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Workers begin with an equal share of the list each: at its beginning stand modules with long tests, as much work in each share."""
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    modules = [list(group) for _, group in groupby(items, lambda item: item.path)]
    long = [module for module in modules if any(seconds(item) >= 1 for item in module)]
    shares: list[list[list[pytest.Item]]] = [[] for _ in range(workers)]
    for module in sorted(long, key=work, reverse=True):
        min(shares, key=lambda share: sum(map(work, share))).append(module)
    ordered = [[item for module in long if module in share for item in module] for share in shares]
    for module in modules:
        if module not in long:
            min(ordered, key=len).extend(module)
    items[:] = [item for share in ordered for item in share]


def seconds(item: pytest.Item) -> float:
    return max((SECONDS[mark.name] for mark in item.iter_markers() if mark.name in SECONDS), default=0.1)


def work(module: list[pytest.Item]) -> float:
    return sum(map(seconds, module))


def pytest_collection_finish() -> None:
    """A model that is closed has garbage collected, a quarter of a second each time with all libraries imported."""
    gc.collect()
    gc.freeze()
