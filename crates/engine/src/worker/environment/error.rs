//! What can go wrong between "there is no environment" and "there is one".

use super::events::Step;
use crate::worker::command::{CommandError, Finished};
use atelier_protocol::{Bytes, Detail, ErrorBody, ErrorCode};
use std::io;
use std::path::PathBuf;
use thiserror::Error;

const LAST_LINES: usize = 14;
const LAST_BYTES: usize = 3000;

#[derive(Debug, Error)]
pub enum EnvironmentError {
    #[error("no Python 3.11 to 3.13 was found on PATH{}", found_so_far(found))]
    PythonMissing {
        /// One sentence for every interpreter that was looked at.
        found: Vec<String>,
    },
    #[error("{} (Python {version}) lacks the venv module", python.display())]
    VenvMissing { python: PathBuf, version: String },
    #[error("the interpreter in ATELIER_PYTHON does not run: {reason}")]
    ExternalUnusable { python: PathBuf, reason: String },
    #[error("{} lacks what the worker needs: {}", python.display(), problems.join("; "))]
    ExternalIncomplete { python: PathBuf, problems: Vec<String> },
    #[error(
        "failed to {step}, since the package registry could not be reached; {tool} said:\n{said}"
    )]
    Unreachable { step: Step, tool: String, said: String },
    #[error(
        "the worker environment needs {needed} in {}, which has {free} free", folder.display()
    )]
    NoSpace { folder: PathBuf, needed: Bytes, free: Bytes },
    #[error("failed to {step}; {tool} said:\n{said}")]
    Tool { step: Step, tool: String, said: String },
    #[error("failed to {step}: {source}")]
    Command { step: Step, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("the worker environment is incomplete after its installation: {}", problems.join("; "))]
    Incomplete { problems: Vec<String> },
    #[error("failed to prepare the worker environment: {0}")]
    Disk(#[from] io::Error),
}

fn found_so_far(found: &[String]) -> String {
    if found.is_empty() { String::new() } else { format!("; found: {}", found.join("; ")) }
}

impl EnvironmentError {
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::PythonMissing { .. }
            | Self::VenvMissing { .. }
            | Self::ExternalUnusable { .. } => ErrorCode::EnvironmentPythonMissing,
            Self::Unreachable { .. } => ErrorCode::EnvironmentUnreachable,
            Self::NoSpace { .. } => ErrorCode::EnvironmentNoSpace,
            Self::Disk(error) if error.kind() == io::ErrorKind::StorageFull => {
                ErrorCode::EnvironmentNoSpace
            }
            Self::ExternalIncomplete { .. }
            | Self::Tool { .. }
            | Self::Command { .. }
            | Self::Incomplete { .. }
            | Self::Disk(_) => ErrorCode::EnvironmentBroken,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::VenvMissing { version, .. } => {
                let minor = version.splitn(3, '.').take(2).collect::<Vec<_>>().join(".");
                Some(format!(
                    "on Debian or Ubuntu `apt install python{minor}-venv` (or `python3-venv`); or \
                     install uv 0.8 or newer, which does without it; or name an interpreter that \
                     has PyTorch in `ATELIER_PYTHON`."
                ))
            }
            Self::ExternalUnusable { .. } => Some(
                "correct the path in `ATELIER_PYTHON`, or unset it: Atelier then makes an \
                 environment of its own."
                    .into(),
            ),
            Self::ExternalIncomplete { .. } => Some(
                "install what is missing there, or unset `ATELIER_PYTHON`: Atelier then makes an \
                 environment of its own."
                    .into(),
            ),
            Self::Disk(_) => Some(
                "check that the folder that the message names belongs to you and may be written \
                 to, or point `ATELIER_ENVS` elsewhere."
                    .into(),
            ),
            Self::Unreachable { tool, .. } => Some(format!(
                "check the network and proxy settings, then the same command again: what is already \
                 here is kept. A mirror is set with {}.",
                if tool.starts_with("pip") {
                    "pip's own settings for this step, and with uv's for the next"
                } else {
                    "uv's own settings, such as `UV_DEFAULT_INDEX`; uv does not read pip's"
                }
            )),
            Self::PythonMissing { .. }
            | Self::NoSpace { .. }
            | Self::Tool { .. }
            | Self::Command { .. }
            | Self::Incomplete { .. } => None,
        }
    }
}

impl From<EnvironmentError> for ErrorBody {
    fn from(error: EnvironmentError) -> Self {
        let body = ErrorBody::new(error.code(), error.to_string());
        let body = match error.hint() {
            Some(hint) => body.with_hint(hint),
            None => body,
        };
        match error {
            EnvironmentError::ExternalIncomplete { problems, .. }
            | EnvironmentError::Incomplete { problems } => {
                body.with_details(problems.into_iter().map(|text| Detail::new("", text)).collect())
            }
            EnvironmentError::PythonMissing { .. }
            | EnvironmentError::VenvMissing { .. }
            | EnvironmentError::ExternalUnusable { .. }
            | EnvironmentError::Unreachable { .. }
            | EnvironmentError::NoSpace { .. }
            | EnvironmentError::Tool { .. }
            | EnvironmentError::Command { .. }
            | EnvironmentError::Disk(_) => body,
        }
    }
}

/// What the last words of a failed tool mean.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Meaning {
    Unreachable,
    DiskFull,
    Other,
}

/// uv and pip have no exit status for "no network", so their texts are read. Both list causes from the outside in; the
/// words below are those of their HTTP libraries, which change less often than their headlines.
fn meaning(said: &str) -> Meaning {
    const DISK: [&str; 2] = ["no space left on device", "disk quota exceeded"];
    const NETWORK: [&str; 17] = [
        "dns error",
        "failed to lookup address",
        "name or service not known",
        "temporary failure in name resolution",
        "client error (connect)",
        "connection refused",
        "connection reset",
        "network is unreachable",
        "error sending request",
        "timed out",
        "timeout",
        "http status client error",
        "http status server error",
        "not found in the package registry",
        "network was disabled",
        "returned a 403",
        "(from versions: none)",
    ];
    let said = said.to_lowercase();
    if DISK.iter().any(|words| said.contains(words)) {
        Meaning::DiskFull
    } else if NETWORK.iter().any(|words| said.contains(words)) {
        Meaning::Unreachable
    } else {
        Meaning::Other
    }
}

/// Turns a tool that ended badly into the error that its words mean. `space` is asked for only when the disk was full.
pub(super) fn from_tool(
    step: Step,
    tool: &str,
    finished: &Finished,
    space: impl FnOnce() -> (PathBuf, Bytes, Bytes),
) -> EnvironmentError {
    let said = [&finished.stdout, &finished.stderr].map(|text| text.trim_end()).join("\n");
    let said = without_credentials(&last_lines(&said));
    let tool = match finished.status.code() {
        Some(_) => tool.to_string(),
        None => format!("{tool}, which was killed,"),
    };
    match meaning(&said) {
        Meaning::Unreachable => EnvironmentError::Unreachable { step, tool, said },
        Meaning::DiskFull => {
            let (folder, needed, free) = space();
            EnvironmentError::NoSpace { folder, needed, free }
        }
        Meaning::Other => EnvironmentError::Tool { step, tool, said },
    }
}

pub(super) fn from_command(step: Step, error: CommandError) -> EnvironmentError {
    EnvironmentError::Command { step, source: Box::new(error) }
}

pub(super) fn last_lines(said: &str) -> String {
    let lines: Vec<&str> = said.trim().lines().collect();
    let text = lines[lines.len().saturating_sub(LAST_LINES)..].join("\n");
    let mut start = text.len().saturating_sub(LAST_BYTES);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    text[start..].to_string()
}

/// The addresses of private mirrors may hold a name and a password.
fn without_credentials(said: &str) -> String {
    let mut clean = String::with_capacity(said.len());
    let mut rest = said;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        clean.push_str(before);
        let end = after.find(|c: char| c == '/' || c.is_whitespace()).unwrap_or(after.len());
        rest = match after[..end].rfind('@') {
            Some(at) => {
                clean.push_str("***");
                &after[at..]
            }
            None => after,
        };
    }
    clean.push_str(rest);
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_uv_and_pip_say_without_a_network_is_understood() {
        for said in [
            "error: Request failed after 3 retries in 6.7s\n  cause: client error (Connect)",
            "  cause: dns error\n  cause: failed to lookup address information",
            "error: Failed to fetch: x\n  cause: HTTP status server error (503 Service Unavailable)",
            "  cause: Because six was not found in the package registry and you require six==1",
            "hint: Packages were unavailable because the network was disabled.",
            "ERROR: Could not find a version that satisfies uv==0.13.9 (from versions: none)",
            "urllib3.exceptions.ReadTimeoutError: Read timed out.",
        ] {
            assert_eq!(meaning(said), Meaning::Unreachable, "{said}");
        }
        assert_eq!(meaning("error: No space left on device (os error 28)"), Meaning::DiskFull);
        for said in ["  cause: Hash mismatch for `six==1.17.0`", "error: unexpected argument"] {
            assert_eq!(meaning(said), Meaning::Other, "{said}");
        }
    }

    #[test]
    fn passwords_of_mirrors_do_not_reach_the_message() {
        assert_eq!(
            without_credentials("at https://me:secret@mirror.test/simple, http://plain.test/a@b"),
            "at https://***@mirror.test/simple, http://plain.test/a@b"
        );
    }

    #[test]
    fn only_the_last_lines_are_kept_and_never_half_a_letter() {
        let many = (0..100).map(|n| format!("line {n}\n")).collect::<String>();
        assert!(last_lines(&many).starts_with("line 86\n"));
        assert!(last_lines(&"é".repeat(LAST_BYTES)).len() <= LAST_BYTES);
    }

    #[test]
    fn a_missing_venv_module_names_the_package_to_install() {
        let body = ErrorBody::from(EnvironmentError::VenvMissing {
            python: "/usr/bin/python3".into(),
            version: "3.12.3".into(),
        });
        assert_eq!(body.code, ErrorCode::EnvironmentPythonMissing);
        assert!(body.hint.contains("python3.12-venv"), "{}", body.hint);
    }
}
