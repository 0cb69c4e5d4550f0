//! Sets up the log: to stderr, as text or JSON. Spans carry request and job ids; prompts never enter it.

use crate::config::{LogConfig, LogFormat};
use std::io::{self, IsTerminal};

/// Call once. A second call changes nothing.
pub(crate) fn start(config: LogConfig) {
    let builder = tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_max_level(config.level)
        .with_ansi(io::stderr().is_terminal());
    // An error means that a log is set up already.
    let _ = match config.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}
