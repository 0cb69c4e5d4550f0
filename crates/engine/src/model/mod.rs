//! Model: the catalogue on disk.
