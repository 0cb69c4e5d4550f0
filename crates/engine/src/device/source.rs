//! Where devices are looked for: one trait, so that tests put in whatever machine they like.

use super::Device;

/// One way of finding devices. Blocking; called off the async threads.
pub trait Source: Send + Sync + 'static {
    /// Names this source in findings.
    fn name(&self) -> &'static str;
    /// Looks. No devices is a result, not an error.
    fn discover(&self) -> Result<Found, SourceError>;
}

/// What a source found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Found {
    pub devices: Vec<Device>,
    /// Single devices that are there but do not answer.
    pub findings: Vec<String>,
}

/// A source that is present but could not look.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct SourceError(pub String);
