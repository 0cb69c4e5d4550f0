"""Atelier's Python worker: one process that draws what the orchestrator plans."""

__version__ = "0.1.0"
