"""How many bytes are held, and giving unused ones back. Decides nothing about who may have them."""

from __future__ import annotations

import ctypes
import gc
import itertools
import os
from pathlib import Path

import torch

from ..messages import Usage


def usage() -> Usage:
    """Resident bytes of this process, and what torch holds of the cards it has touched."""
    resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
    cards = None
    if torch.cuda.is_initialized():
        cards = sum(torch.cuda.memory_reserved(i) for i in range(torch.cuda.device_count()))
    return Usage(resident_pages * os.sysconf("SC_PAGE_SIZE"), cards)


def bytes_of(module: torch.nn.Module) -> int:
    """Weights and buffers of a module, wherever they are."""
    tensors = itertools.chain(module.parameters(), module.buffers())
    return sum(tensor.nbytes for tensor in tensors)


def release() -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc keeps freed weights otherwise
        libc.malloc_trim(0)
