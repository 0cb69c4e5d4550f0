"""`python -m fake`: the real process, pipes and loop around the engine that only pretends."""

from atelier_worker.__main__ import serve

if __name__ == "__main__":
    from .engine import FakeEngine

    serve(FakeEngine, "0.1.0 (fake)")
