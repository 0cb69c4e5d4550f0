//! The Python environment of the workers.
