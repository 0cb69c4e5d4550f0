"""The process: ties it to its parent and guards the pipes before anything else is imported."""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

from . import __version__

if TYPE_CHECKING:
    from collections.abc import Callable

    from .engine import Engine
    from .messages import Budget

PR_SET_PDEATHSIG = 1


def die_with(parent: int | None) -> None:
    """Ask the kernel for SIGKILL when the parent goes; leave if it went before we could ask."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        sys.exit(0)


def take_pipes() -> tuple[int, int]:
    """Keep the protocol's pipes for ourselves; whatever else prints gets stderr, and reads nothing.

    Must run before torch is imported: libraries, their C code and their child processes all use
    descriptors 0 and 1 when they feel like it. Duplicates are closed in children by default.
    """
    stdin, stdout = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return stdin, stdout


def serve(make_engine: Callable[[Budget], Engine], build: str) -> NoReturn:
    """Be a worker with this engine, which is made when the orchestrator has said welcome."""
    arguments = sys.argv[1:]
    if arguments and (len(arguments) != 2 or arguments[0] != "--parent"):
        sys.exit("usage: python -m atelier_worker [--parent PID]")
    die_with(int(arguments[1]) if arguments else None)
    stdin, stdout = take_pipes()
    faulthandler.enable(sys.stderr)
    faulthandler.register(signal.SIGUSR1, sys.stderr, all_threads=True)
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the whole group; not ours to act on
    # Nothing here may ask a model hub or phone home, whatever the libraries' defaults become.
    os.environ.update(
        HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false"
    )

    import logging

    from .loop import Loop

    logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("atelier_worker").setLevel(logging.INFO)
    Loop(stdin, stdout, make_engine, build).serve()


def torch_engine(budget: Budget) -> Engine:
    # The imports make hundreds of thousands of objects that live for good. Looking through them
    # again and again for garbage costs a fifth of the start, and later some of every step.
    gc.disable()
    from .torch_engine import TorchEngine

    gc.freeze()
    gc.enable()
    return TorchEngine(budget)


if __name__ == "__main__":
    serve(torch_engine, __version__)
