//! The only place where an error code, its HTTP status, its exit code, its retry advice and its text are written.
//!
//! From this table come the Rust enum, `contract/error-codes.json`, the Python enum, `docs/reference/errors.md` and the
//! responses in `contract/openapi.json`. Add a code only if a client would act differently on it.

use serde::{Deserialize, Serialize};
use std::fmt;

/// What a caller may do after this error.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Retry {
    /// The same request will fail in the same way.
    Never,
    /// It works after the caller changes something.
    AfterChange,
    /// It works later without a change.
    Later,
}

/// One row of the table, for generators and tests.
#[derive(Clone, Copy, Debug)]
pub struct ErrorRow {
    pub code: ErrorCode,
    pub word: &'static str,
    pub http: u16,
    pub exit: u8,
    pub retry: Retry,
    pub doc: &'static str,
}

impl ErrorRow {
    /// The sentence after "Try:", without it.
    #[must_use]
    pub fn hint(&self) -> String {
        let text = self.doc.split_once("Try:").map_or("", |(_, hint)| hint);
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }
    /// What happened, without the way out.
    #[must_use]
    pub fn cause(&self) -> String {
        let text = self.doc.split_once("Try:").map_or(self.doc, |(cause, _)| cause);
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

/// The words before the dot: a closed list.
pub const PREFIXES: [&str; 15] = [
    "request",
    "device",
    "memory",
    "model",
    "processing",
    "inference",
    "postprocessing",
    "artifact",
    "worker",
    "protocol",
    "environment",
    "store",
    "config",
    "node",
    "internal",
];

macro_rules! error_codes {
    ($( $(#[doc = $doc:literal])+ $name:ident = $word:literal, http $http:literal, exit $exit:literal, $retry:ident; )+) => {
        /// Every error that leaves a process, by name.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
        #[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
        pub enum ErrorCode {
            $( $(#[doc = $doc])+ #[serde(rename = $word)] $name, )+
        }

        impl ErrorCode {
            /// The whole table, in the order in which it is written.
            pub const ALL: &'static [ErrorRow] = &[
                $( ErrorRow {
                    code: ErrorCode::$name, word: $word, http: $http, exit: $exit, retry: Retry::$retry,
                    doc: concat!($($doc, "\n"),+),
                }, )+
            ];
        }
    };
}

error_codes! {
    /// The request is not well formed: broken JSON, an unknown or missing field, a wrong type, or a value out of range.
    ///
    /// Try: correct the fields listed under `details`; each names what is allowed.
    RequestInvalid = "request.invalid", http 400, exit 2, AfterChange;
    /// The body is larger than this node accepts.
    ///
    /// Try: send less; the message names the limit.
    RequestTooLarge = "request.too_large", http 413, exit 2, AfterChange;
    /// The request comes from a page, host name or content type that this node does not trust.
    ///
    /// Try: call the loopback address directly, send `Content-Type: application/json`, and no foreign `Origin`.
    RequestForbidden = "request.forbidden", http 403, exit 2, AfterChange;
    /// There is no such route, or the route does not know this method.
    ///
    /// Try: the list of routes in the API reference, `docs/reference/http.md`.
    RequestNotFound = "request.not_found", http 404, exit 2, AfterChange;

    /// No device has this id.
    ///
    /// Try: one of the ids that `atelier devices` lists.
    DeviceNotFound = "device.not_found", http 404, exit 4, AfterChange;
    /// The device exists but the worker's PyTorch cannot use it.
    ///
    /// Try: another device, or a PyTorch build for this card through `ATELIER_PYTHON`.
    DeviceUnsupported = "device.unsupported", http 409, exit 4, AfterChange;

    /// The reservation does not fit in what is left on the device. The message shows the arithmetic.
    ///
    /// Try: a smaller size, a smaller model, or wait until other work has ended.
    MemoryInsufficient = "memory.insufficient", http 409, exit 5, AfterChange;
    /// The device ran out of memory while the job was running.
    ///
    /// Try: a smaller size or count; close other programs that use the device.
    MemoryExhausted = "memory.exhausted", http 507, exit 5, AfterChange;

    /// No model answers to this name.
    ///
    /// Try: one of the nearest names in the message, or `atelier models list`.
    ModelNotFound = "model.not_found", http 404, exit 6, AfterChange;
    /// The name fits more than one model.
    ///
    /// Try: one of the ids in the message.
    ModelAmbiguous = "model.ambiguous", http 409, exit 6, AfterChange;
    /// A file of the model is truncated, lies about its contents, or cannot be opened.
    ///
    /// Try: copy or download the file again; the message names the file and the place in it.
    ModelUnreadable = "model.unreadable", http 422, exit 6, AfterChange;
    /// The model is of a kind that is not served: a pickle file, or an architecture without support here.
    ///
    /// Try: a safetensors version of the model. Pickle files can run programs when they are opened, so they never are.
    ModelUnsupported = "model.unsupported", http 422, exit 6, Never;

    /// The model has ended several workers in a row and is left alone for a while. It is tried again by itself.
    ///
    /// Try: again after the time in `Retry-After`, or another model; the attempts of its jobs show what happened.
    ModelBroken = "model.broken", http 503, exit 6, Later;

    /// The queue is full.
    ///
    /// Try: again after the time in `Retry-After`.
    ProcessingQueueFull = "processing.queue_full", http 429, exit 7, Later;
    /// No job has this id.
    ///
    /// Try: one of the ids that `atelier jobs list` prints.
    ProcessingNotFound = "processing.not_found", http 404, exit 7, AfterChange;
    /// The job was cancelled.
    ///
    /// Try: submit it again if it was not meant.
    ProcessingCancelled = "processing.cancelled", http 409, exit 7, Never;
    /// The request contradicts what is stored: an idempotency key that came with another body before, or a change to a
    /// job that has ended.
    ///
    /// Try: a fresh key, or leave the ended job as it is.
    ProcessingConflict = "processing.conflict", http 409, exit 7, AfterChange;
    /// The job ended every worker that tried it, and was set aside with the evidence of each attempt.
    ///
    /// Try: look at `attempts` in the job; a smaller size helps when memory ran out.
    ProcessingSetAside = "processing.set_aside", http 500, exit 7, AfterChange;

    /// The request is well formed but cannot be drawn: a size that the model cannot make, steps, guidance, seed or
    /// strength out of range, an unknown scheduler, an empty prompt. All problems are listed.
    ///
    /// Try: correct the fields listed under `details`; each says what is possible.
    InferenceInvalid = "inference.invalid", http 422, exit 3, AfterChange;
    /// The model computed something that is no picture, such as not-a-number values.
    ///
    /// Try: another scheduler or guidance scale; fp32 instead of a narrower precision.
    InferenceFailed = "inference.failed", http 500, exit 3, AfterChange;

    /// The picture could not be encoded or written.
    ///
    /// Try: another output format; the message says what the encoder refused.
    PostprocessingFailed = "postprocessing.failed", http 500, exit 9, AfterChange;

    /// No artifact has this id, or its file is gone.
    ///
    /// Try: the ids under `artifacts` in the job.
    ArtifactNotFound = "artifact.not_found", http 404, exit 9, AfterChange;
    /// The picture cannot be written to the path that was asked for.
    ///
    /// Try: a folder that exists and may be written to. The finished picture stays in the node's store.
    ArtifactNotWritable = "artifact.not_writable", http 403, exit 9, AfterChange;

    /// The worker is still starting.
    ///
    /// Try: again in some seconds; submitting a job works at once, since it waits in the queue.
    WorkerStarting = "worker.starting", http 503, exit 8, Later;
    /// The worker process ended while it held this work.
    ///
    /// Try: nothing; a new worker starts and the job is tried again by itself.
    WorkerCrashed = "worker.crashed", http 503, exit 8, Later;
    /// The worker did not answer in the time that its phase allows, and was replaced.
    ///
    /// Try: again; if it recurs, look at the stack dump in the job's attempts.
    WorkerUnresponsive = "worker.unresponsive", http 503, exit 8, Later;
    /// The worker's program speaks another protocol or is not a worker at all.
    ///
    /// Try: `atelier worker install`, or a PyTorch of the supported versions in `ATELIER_PYTHON`.
    WorkerIncompatible = "worker.incompatible", http 503, exit 8, AfterChange;
    /// Something in the worker failed in a way that has no name yet. The traceback is in the log.
    ///
    /// Try: report it with the log of the job.
    WorkerInternal = "worker.internal", http 500, exit 8, AfterChange;

    /// The two halves speak different versions of the protocol.
    ///
    /// Try: `atelier worker install`, so that both halves come from one release.
    ProtocolVersionMismatch = "protocol.version_mismatch", http 503, exit 8, AfterChange;
    /// A line broke the rules of the worker protocol.
    ///
    /// Try: report it with the log; the worker is replaced by itself.
    ProtocolViolation = "protocol.violation", http 500, exit 8, Later;

    /// No usable Python was found, or it lacks the `venv` module.
    ///
    /// Try: install Python 3.11 to 3.13 with its venv module, or name an interpreter in `ATELIER_PYTHON`.
    EnvironmentPythonMissing = "environment.python_missing", http 503, exit 10, AfterChange;
    /// The package registry did not answer.
    ///
    /// Try: check the network and proxy settings, then the same command again: what is already here is kept.
    EnvironmentUnreachable = "environment.unreachable", http 503, exit 10, Later;
    /// There is too little disk space for the worker environment.
    ///
    /// Try: free the space that the message names, or point `ATELIER_ENVS` at a larger disk.
    EnvironmentNoSpace = "environment.no_space", http 507, exit 10, AfterChange;
    /// The worker environment is there but does not work, or the named interpreter lacks what the worker needs.
    ///
    /// Try: `atelier worker install --repair`, or another interpreter in `ATELIER_PYTHON`.
    EnvironmentBroken = "environment.broken", http 503, exit 10, AfterChange;

    /// The job store cannot be opened or written: another node holds it, or permissions are missing.
    ///
    /// Try: stop the other node or use another data folder; the message names the holder where it is known.
    StoreUnavailable = "store.unavailable", http 503, exit 11, Later;
    /// The job store is damaged or was written by a newer version.
    ///
    /// Try: the newer version, or a backup of the data folder.
    StoreCorrupt = "store.corrupt", http 500, exit 11, AfterChange;
    /// The disk that holds the data folder is full.
    ///
    /// Try: free some space; the node goes on by itself.
    StoreFull = "store.full", http 507, exit 11, Later;

    /// A setting has a wrong name, type, unit or value.
    ///
    /// Try: correct what the message names; `atelier config show` lists every setting with its meaning.
    ConfigInvalid = "config.invalid", http 500, exit 12, AfterChange;

    /// No node answers at this address.
    ///
    /// Try: `atelier serve`, or the right address in `--node`.
    NodeUnreachable = "node.unreachable", http 503, exit 13, Later;
    /// The address is taken by another program or node.
    ///
    /// Try: another port with `--listen`, or stop the program that the message names.
    NodeAddressTaken = "node.address_taken", http 503, exit 13, AfterChange;
    /// The node is shutting down and takes no new work.
    ///
    /// Try: again when it is back; accepted jobs continue then.
    NodeStopping = "node.stopping", http 503, exit 13, Later;

    /// A defect in Atelier itself.
    ///
    /// Try: report it with the request id and the log.
    Internal = "internal", http 500, exit 1, Never;
}

impl ErrorCode {
    /// This code's row of the table.
    #[must_use]
    pub fn row(self) -> &'static ErrorRow {
        &Self::ALL[self as usize]
    }
    /// The stable word, as on the wire.
    #[must_use]
    pub fn word(self) -> &'static str {
        self.row().word
    }
    /// The sentence after "Try:", without it.
    #[must_use]
    pub fn hint(self) -> String {
        self.row().hint()
    }
    /// What happened, without the way out.
    #[must_use]
    pub fn cause(self) -> String {
        self.row().cause()
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// One thing that is wrong, and where.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Detail {
    /// Path of the field in the request, such as `width` or `output.format`; empty for the request as a whole.
    pub field: String,
    /// What is wrong and what is possible.
    pub message: String,
}

impl Detail {
    #[must_use]
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}

/// The one shape of an error: over HTTP inside `{"error": …}`, in a job's record, and from the worker.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ErrorBody {
    pub code: ErrorCode,
    pub message: String,
    /// A way out.
    pub hint: String,
    pub retry: Retry,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<Detail>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

impl ErrorBody {
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            hint: code.hint(),
            retry: code.row().retry,
            details: Vec::new(),
            request_id: None,
        }
    }
    #[must_use]
    pub fn with_details(mut self, details: Vec<Detail>) -> Self {
        self.details = details;
        self
    }
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }
}

impl fmt::Display for ErrorBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.message)
    }
}

impl std::error::Error for ErrorBody {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// What is wrong with a table.
    fn problems(rows: &[ErrorRow]) -> Vec<String> {
        let mut seen = BTreeSet::new();
        let mut problems = Vec::new();
        for (index, row) in rows.iter().enumerate() {
            let mut check = |holds: bool, what: &str| {
                if !holds {
                    problems.push(format!("{} {what}", row.word));
                }
            };
            let prefix = row.word.split('.').next().expect("a word");
            check(row.code as usize == index, "is out of order");
            check(seen.insert(row.word), "is written twice");
            check(PREFIXES.contains(&prefix), "has an unknown prefix");
            check((400..600).contains(&row.http), "has no status of an error");
            check(row.exit > 0, "would exit as a success");
            check(row.hint().len() > 10, "has no `Try:`");
            check(row.cause().len() > 10, "does not say what happened");
        }
        problems
    }

    #[test]
    fn every_code_is_unique_has_a_known_prefix_a_status_and_a_way_out() {
        assert_eq!(problems(ErrorCode::ALL), Vec::<String>::new());
        for row in ErrorCode::ALL {
            assert_eq!(serde_json::to_value(row.code).expect("json"), row.word);
        }
    }

    #[test]
    fn a_row_that_breaks_a_rule_is_named_with_the_rule() {
        let good = *ErrorCode::RequestInvalid.row();
        for (row, rule) in [
            (ErrorRow { doc: "It broke, and nobody knows a way out.", ..good }, "has no `Try:`"),
            (ErrorRow { doc: "Try: something else.", ..good }, "does not say what happened"),
            (ErrorRow { http: 200, ..good }, "has no status of an error"),
            (ErrorRow { exit: 0, ..good }, "would exit as a success"),
            (ErrorRow { code: ErrorCode::Internal, ..good }, "is out of order"),
        ] {
            assert_eq!(problems(&[row]), [format!("request.invalid {rule}")]);
        }
        let odd = ErrorRow { word: "weather.bad", ..good };
        assert_eq!(problems(&[odd]), ["weather.bad has an unknown prefix"]);
        assert_eq!(
            problems(&[good, ErrorRow { code: ErrorCode::RequestTooLarge, ..good }]).len(),
            1
        );
    }
}
