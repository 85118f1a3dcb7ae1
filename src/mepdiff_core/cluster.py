"""Workers of Dask, on this computer or where a scheduler has them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from mepdiff_core.errors import InputError

ATTEMPTS = 3
"""So often is a task begun again whose worker died."""


@contextlib.contextmanager
def dask_client(workers: int, scheduler: str | None) -> Iterator[Any]:
    """A Dask client, closed at the end.

    Args:
        workers: processes on this computer, of one thread each.
        scheduler: address of a scheduler, whose workers see the same files, instead.

    Raises:
        InputError: no scheduler answers there.
    """
    import dask
    from dask.distributed import Client, LocalCluster

    for name in ("distributed.nanny", "distributed.scheduler", "distributed.worker", "distributed.core"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # a worker that dies is begun again; that is no news to a user
    settings = {
        "distributed.scheduler.allowed-failures": ATTEMPTS,
        "distributed.comm.timeouts.connect": "10s",
        "distributed.worker.profile.enabled": False,  # it looks at every worker's stack a hundred times a second
        # without Dask's trimming of freed memory: fresh pages for every transform cost 2.5 times the transforms
        "distributed.nanny.pre-spawn-environ": {"OMP_NUM_THREADS": 1, "MKL_NUM_THREADS": 1, "OPENBLAS_NUM_THREADS": 1},
    }
    with dask.config.set(settings):
        if scheduler is not None:
            try:
                client = Client(scheduler, timeout=10)
            except (OSError, TimeoutError, ValueError) as error:
                reason = " ".join(str(error).split())
                raise InputError(
                    f"no Dask scheduler answers at {scheduler} ({reason}); start one with 'dask scheduler', give its address"
                ) from None
            with client:
                yield client
            return
        free_port = "127.0.0.1:0"  # Dask's own 8787 may be taken by another run beside this one
        cluster = LocalCluster(
            n_workers=workers, threads_per_worker=1, dashboard_address=free_port, silence_logs=logging.CRITICAL
        )
        with cluster, Client(cluster) as client:
            yield client
