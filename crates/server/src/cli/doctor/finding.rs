//! What a look at one thing comes to, and how it is told.

use crate::cli::render::plain;
use serde::Serialize;

/// How a look at one thing came out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    Good,
    /// It works, but not as well as it could.
    Note,
    /// Pictures cannot be made until this is mended.
    Bad,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(super) struct Finding {
    pub(super) what: &'static str,
    pub(super) verdict: Verdict,
    pub(super) seen: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) fix: Option<String>,
}

impl Finding {
    pub(super) fn good(what: &'static str, seen: impl Into<String>) -> Self {
        Self { what, verdict: Verdict::Good, seen: seen.into(), fix: None }
    }
    pub(super) fn note(
        what: &'static str,
        seen: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self { what, verdict: Verdict::Note, seen: seen.into(), fix: Some(fix.into()) }
    }
    pub(super) fn bad(what: &'static str, seen: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { what, verdict: Verdict::Bad, seen: seen.into(), fix: Some(fix.into()) }
    }

    /// For people; the fix stands below.
    pub(super) fn text(&self) -> String {
        let mark = match self.verdict {
            Verdict::Good => "ok  ",
            Verdict::Note => "note",
            Verdict::Bad => "BAD ",
        };
        let mut text = format!("{mark}  {:<13} {}\n", self.what, plain(&self.seen));
        if let Some(fix) = &self.fix {
            text.push_str(&format!("{:20}fix: {}\n", "", plain(fix)));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_shown_with_its_fix() {
        let finding = Finding::bad("disk", "10 MiB free", "free some space");
        assert_eq!(
            finding.text(),
            "BAD   disk          10 MiB free\n                    fix: free some space\n"
        );
    }
}
