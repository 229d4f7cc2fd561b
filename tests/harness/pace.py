"""What makes a run shorter: long modules first, and no walk through what stays until the end at each collection of garbage."""

from __future__ import annotations

import gc
from itertools import groupby

import pytest


# Last: after pytest-randomly has shuffled, and pytest has put tests together that share a fixture with parameters.
@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Workers begin with an equal share of the list each: modules with `slow` tests go to the beginnings of the shares."""
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    modules = [list(group) for _, group in groupby(items, lambda item: item.path)]
    long = [module for module in modules if any(item.get_closest_marker("slow") for item in module)]
    short = [module for module in modules if module not in long]
    shares = [[item for module in long[worker::workers] for item in module] for worker in range(workers)]
    for module in short:
        min(shares, key=len).extend(module)
    items[:] = [item for share in shares for item in share]


def pytest_collection_finish() -> None:
    """A model that is closed has garbage collected, a quarter of a second each time with all libraries imported."""
    gc.collect()
    gc.freeze()
