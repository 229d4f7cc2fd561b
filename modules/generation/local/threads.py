"""Small work on one thread: a second one costs more than it brings, and on a busy machine has to be waited for."""

from __future__ import annotations

import torch


class OneThread:
    """While it is entered, torch computes on the calling thread alone. It costs less than a microsecond."""

    def __enter__(self) -> None:
        self._threads = torch.get_num_threads()
        torch.set_num_threads(1)

    def __exit__(self, *error: object) -> None:
        torch.set_num_threads(self._threads)
