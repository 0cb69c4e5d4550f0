//! The wall clock, in one place so that tests can fix it. Durations are measured with [`std::time::Instant`] instead.

use jiff::{Timestamp, Unit};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Gives the time of day. Cheap to clone.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl Clock {
    /// The machine's clock.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the clock")]
    pub fn system() -> Self {
        Self(Arc::new(Timestamp::now))
    }
    /// A clock that stands still.
    #[must_use]
    pub fn fixed(at: Timestamp) -> Self {
        Self(Arc::new(move || at))
    }
    #[must_use]
    pub fn now(&self) -> Timestamp {
        (self.0)()
    }
    /// Now, as RFC 3339 in UTC with milliseconds: the form of every time that we store or send.
    #[must_use]
    pub fn stamp(&self) -> String {
        rfc3339(self.now())
    }
    /// The same form, this much later.
    #[must_use]
    pub fn stamp_in(&self, later: Duration) -> String {
        rfc3339(self.now().saturating_add(later).unwrap_or(Timestamp::MAX))
    }
}

/// RFC 3339 in UTC with milliseconds.
#[must_use]
pub fn rfc3339(at: Timestamp) -> String {
    format!("{:.3}", at.round(Unit::Millisecond).unwrap_or(at))
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_in_utc_with_milliseconds() {
        let at = Timestamp::from_millisecond(1_700_000_000_120).expect("a valid time");
        assert_eq!(Clock::fixed(at).stamp(), "2023-11-14T22:13:20.120Z");
    }
}
