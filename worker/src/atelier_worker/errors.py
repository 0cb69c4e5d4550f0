"""Errors with a word from the table, and what the libraries' exceptions mean in those words.

Names exceptions of torch and safetensors without importing them: this module is used before, and
tested without, both.
"""

from __future__ import annotations

import logging

from . import messages
from .error_codes import ErrorCode
from .messages import Detail

log = logging.getLogger(__name__)

LONGEST_MESSAGE = 2000  # characters; libraries sometimes put whole tensors into theirs


class WorkerError(Exception):
    """A failure that we can name. The message fits after "failed to …" and keeps the facts."""

    def __init__(self, code: ErrorCode, message: str, details: list[Detail] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details or []

    def body(self) -> messages.Error:
        """The error as a line carries it."""
        return messages.Error(self.code, self.message[:LONGEST_MESSAGE], self.details)


BY_TYPE = {
    "MemoryError": ErrorCode.MEMORY_EXHAUSTED,
    "OutOfMemoryError": ErrorCode.MEMORY_EXHAUSTED,  # torch, on any accelerator
    "SafetensorError": ErrorCode.MODEL_UNREADABLE,
    "FileNotFoundError": ErrorCode.MODEL_UNREADABLE,
    "NotADirectoryError": ErrorCode.MODEL_UNREADABLE,
    "IsADirectoryError": ErrorCode.MODEL_UNREADABLE,
    "PermissionError": ErrorCode.MODEL_UNREADABLE,
    "JSONDecodeError": ErrorCode.MODEL_UNREADABLE,
}
"""Exceptions whose class says enough, by name, looked up along their ancestors."""

BY_TEXT = {
    "can't allocate memory": ErrorCode.MEMORY_EXHAUSTED,  # torch's CPU allocator
    "CUDA out of memory": ErrorCode.MEMORY_EXHAUSTED,
    "CUDNN_STATUS_ALLOC_FAILED": ErrorCode.MEMORY_EXHAUSTED,
    "CUBLAS_STATUS_ALLOC_FAILED": ErrorCode.MEMORY_EXHAUSTED,
    "no kernel image is available": ErrorCode.DEVICE_UNSUPPORTED,  # built for other cards
}
"""RuntimeErrors of torch, which have one class for everything, by a part of their text."""


def classify(problem: Exception) -> WorkerError:
    """The same failure in words of the table; what has none becomes `worker.internal`."""
    if isinstance(problem, WorkerError):
        return problem
    name = type(problem).__name__
    code = next((BY_TYPE[a.__name__] for a in type(problem).__mro__ if a.__name__ in BY_TYPE), None)
    if code is None and isinstance(problem, RuntimeError):
        code = next((code for text, code in BY_TEXT.items() if text in str(problem)), None)
    if code is not None:
        log.warning("%s", code, exc_info=problem)
        return WorkerError(code, str(problem) or name)
    log.error("no error code fits this exception", exc_info=problem)
    return WorkerError(ErrorCode.WORKER_INTERNAL, f"unexpected {name} in the worker")
