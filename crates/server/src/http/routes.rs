//! The one table of routes. The router is built from it, and so is the API's description: a route that is not here does
//! not exist, and one that is here cannot be forgotten there.

use super::answer::ApiError;
use super::{App, artifacts, events, facts, jobs};
use atelier_protocol::{ErrorBody, ErrorCode};
use axum::Router;
use axum::http::{Method, StatusCode, Uri};
use axum::routing::{MethodFilter, MethodRouter, on};

/// Where a parameter is given; those in the path are named by the path itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    Query,
    Header,
}

#[derive(Clone, Copy, Debug)]
pub struct Parameter {
    pub name: &'static str,
    pub place: Place,
    /// A type of JSON Schema.
    pub schema: &'static str,
    pub doc: &'static str,
}

/// What a successful answer holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// The name of a type of `atelier_protocol::http`.
    Json(&'static str),
    /// Server-sent events.
    Events,
    /// The bytes of a picture.
    Picture,
    Empty,
}

#[derive(Clone, Copy, Debug)]
pub struct Success {
    pub status: u16,
    pub answer: Answer,
    pub doc: &'static str,
}

/// One operation.
#[derive(Clone, Copy, Debug)]
pub struct RouteRow {
    /// `GET` or `POST`.
    pub method: &'static str,
    pub path: &'static str,
    /// Unique word for the operation.
    pub operation: &'static str,
    pub summary: &'static str,
    pub tag: &'static str,
    pub parameters: &'static [Parameter],
    /// The name of the body's type, when there is a body.
    pub request: Option<&'static str>,
    pub success: &'static [Success],
    /// Besides [`COMMON_ERRORS`].
    pub errors: &'static [ErrorCode],
    handler: fn(MethodFilter) -> MethodRouter<App>,
}

/// Errors that every route may answer with.
pub const COMMON_ERRORS: &[ErrorCode] = &[ErrorCode::RequestForbidden, ErrorCode::Internal];

const fn json(status: u16, body: &'static str, doc: &'static str) -> Success {
    Success { status, answer: Answer::Json(body), doc }
}

const AFTER: [Parameter; 2] = [
    Parameter {
        name: "after",
        place: Place::Query,
        schema: "integer",
        doc: "Go on after the event with this id; everything stored, when absent.",
    },
    Parameter {
        name: "Last-Event-ID",
        place: Place::Header,
        schema: "integer",
        doc: "The same as `after`, and stronger; browsers send it when they come back.",
    },
];

/// Every route, by tag.
pub const ROUTES: &[RouteRow] = &[
    RouteRow {
        method: "POST",
        path: "/v1/jobs",
        operation: "submit_job",
        summary: "Submit a job.",
        tag: "jobs",
        parameters: &[
            Parameter {
                name: "Prefer",
                place: Place::Header,
                schema: "string",
                doc: "`wait=N` answers when the job has ended, or after N seconds with the job as it is; \
                      the job lives on.",
            },
            Parameter {
                name: "Idempotency-Key",
                place: Place::Header,
                schema: "string",
                doc: "1 to 255 characters. The same key with the same request gives the same job for 24 hours.",
            },
        ],
        request: Some("JobRequest"),
        success: &[
            json(202, "Job", "Accepted; `Location` names the job."),
            json(200, "Job", "The ended job, when the request asked to wait."),
        ],
        errors: &[
            ErrorCode::RequestInvalid,
            ErrorCode::RequestTooLarge,
            ErrorCode::InferenceInvalid,
            ErrorCode::ModelNotFound,
            ErrorCode::ModelAmbiguous,
            ErrorCode::ModelUnreadable,
            ErrorCode::ModelUnsupported,
            ErrorCode::DeviceNotFound,
            ErrorCode::DeviceUnsupported,
            ErrorCode::MemoryInsufficient,
            ErrorCode::ProcessingQueueFull,
            ErrorCode::ProcessingConflict,
            ErrorCode::StoreUnavailable,
            ErrorCode::StoreFull,
            ErrorCode::NodeStopping,
        ],
        handler: |method| on(method, jobs::submit),
    },
    RouteRow {
        method: "POST",
        path: "/v1/jobs/validate",
        operation: "validate_job",
        summary: "Check a request as a submission would, without submitting it.",
        tag: "jobs",
        parameters: &[],
        request: Some("JobRequest"),
        success: &[json(
            200,
            "Validation",
            "What a submission would do, or every problem at once.",
        )],
        errors: &[ErrorCode::RequestInvalid, ErrorCode::RequestTooLarge],
        handler: |method| on(method, jobs::validate),
    },
    RouteRow {
        method: "GET",
        path: "/v1/jobs",
        operation: "list_jobs",
        summary: "List jobs, newest first.",
        tag: "jobs",
        parameters: &[
            Parameter {
                name: "state",
                place: Place::Query,
                schema: "string",
                doc: "Only jobs in this state.",
            },
            Parameter {
                name: "limit",
                place: Place::Query,
                schema: "integer",
                doc: "Jobs a page, 1 to 200; 50 when absent.",
            },
            Parameter {
                name: "cursor",
                place: Place::Query,
                schema: "string",
                doc: "`next` of the page before.",
            },
        ],
        request: None,
        success: &[json(200, "List<Job>", "A page of jobs.")],
        errors: &[ErrorCode::RequestInvalid, ErrorCode::StoreUnavailable],
        handler: |method| on(method, jobs::list),
    },
    RouteRow {
        method: "GET",
        path: "/v1/jobs/{id}",
        operation: "get_job",
        summary: "One job, with its request, progress, attempts, pictures and timings.",
        tag: "jobs",
        parameters: &[],
        request: None,
        success: &[json(200, "Job", "The job; a failed one holds its error.")],
        errors: &[ErrorCode::ProcessingNotFound, ErrorCode::StoreUnavailable],
        handler: |method| on(method, jobs::get),
    },
    RouteRow {
        method: "POST",
        path: "/v1/jobs/{id}/cancel",
        operation: "cancel_job",
        summary: "Ask for the end of a job.",
        tag: "jobs",
        parameters: &[],
        request: None,
        success: &[json(200, "Job", "The job; a running one ends at its next step.")],
        errors: &[
            ErrorCode::ProcessingNotFound,
            ErrorCode::ProcessingConflict,
            ErrorCode::StoreUnavailable,
        ],
        handler: |method| on(method, jobs::cancel),
    },
    RouteRow {
        method: "GET",
        path: "/v1/jobs/{id}/events",
        operation: "job_events",
        summary: "The events of one job, past and coming, until its `end`.",
        tag: "jobs",
        parameters: &AFTER,
        request: None,
        success: &[Success {
            status: 200,
            answer: Answer::Events,
            doc: "`state`, `progress`, `artifact`, `warning`, and last `end` with the whole job.",
        }],
        errors: &[
            ErrorCode::RequestInvalid,
            ErrorCode::ProcessingNotFound,
            ErrorCode::StoreUnavailable,
        ],
        handler: |method| on(method, events::of_job),
    },
    RouteRow {
        method: "GET",
        path: "/v1/events",
        operation: "node_events",
        summary: "The events of all jobs, from now on or after an id.",
        tag: "jobs",
        parameters: &AFTER,
        request: None,
        success: &[Success {
            status: 200,
            answer: Answer::Events,
            doc: "As for one job; each names its `job`.",
        }],
        errors: &[ErrorCode::RequestInvalid, ErrorCode::StoreUnavailable],
        handler: |method| on(method, events::of_node),
    },
    RouteRow {
        method: "GET",
        path: "/v1/artifacts/{id}",
        operation: "get_artifact",
        summary: "The bytes of a finished picture.",
        tag: "artifacts",
        parameters: &[Parameter {
            name: "If-None-Match",
            place: Place::Header,
            schema: "string",
            doc: "The `ETag` of an earlier answer, which is the picture's BLAKE3.",
        }],
        request: None,
        success: &[
            Success { status: 200, answer: Answer::Picture, doc: "The picture." },
            Success { status: 304, answer: Answer::Empty, doc: "The client has these bytes." },
        ],
        errors: &[ErrorCode::ArtifactNotFound, ErrorCode::StoreUnavailable],
        handler: |method| on(method, artifacts::get),
    },
    RouteRow {
        method: "GET",
        path: "/v1/devices",
        operation: "list_devices",
        summary: "The devices of this machine.",
        tag: "devices",
        parameters: &[],
        request: None,
        success: &[json(200, "List<DeviceEntry>", "All devices.")],
        errors: &[],
        handler: |method| on(method, facts::devices),
    },
    RouteRow {
        method: "GET",
        path: "/v1/devices/{id}",
        operation: "get_device",
        summary: "One device.",
        tag: "devices",
        parameters: &[],
        request: None,
        success: &[json(200, "DeviceEntry", "The device.")],
        errors: &[ErrorCode::DeviceNotFound],
        handler: |method| on(method, facts::device),
    },
    RouteRow {
        method: "GET",
        path: "/v1/memory",
        operation: "list_memory",
        summary: "Memory of all devices: total, promised, observed, free.",
        tag: "memory",
        parameters: &[],
        request: None,
        success: &[json(200, "List<MemoryEntry>", "Memory by device; `cpu` is the machine's RAM.")],
        errors: &[],
        handler: |method| on(method, facts::memory),
    },
    RouteRow {
        method: "GET",
        path: "/v1/memory/{device}",
        operation: "get_memory",
        summary: "Memory of one device.",
        tag: "memory",
        parameters: &[],
        request: None,
        success: &[json(200, "MemoryEntry", "The device's memory.")],
        errors: &[ErrorCode::DeviceNotFound],
        handler: |method| on(method, facts::memory_of),
    },
    RouteRow {
        method: "GET",
        path: "/v1/models",
        operation: "list_models",
        summary: "The models that were found, usable or not.",
        tag: "models",
        parameters: &[],
        request: None,
        success: &[json(200, "List<ModelEntry>", "All models.")],
        errors: &[],
        handler: |method| on(method, facts::models),
    },
    RouteRow {
        method: "GET",
        path: "/v1/models/{id}",
        operation: "get_model",
        summary: "One model, by id, folder name or hash prefix.",
        tag: "models",
        parameters: &[],
        request: None,
        success: &[json(200, "ModelEntry", "The model.")],
        errors: &[ErrorCode::ModelNotFound, ErrorCode::ModelAmbiguous],
        handler: |method| on(method, facts::model),
    },
    RouteRow {
        method: "GET",
        path: "/v1/capabilities",
        operation: "get_capabilities",
        summary: "What this node can be asked for: kinds, families, schedulers, formats, limits.",
        tag: "node",
        parameters: &[],
        request: None,
        success: &[json(200, "Capabilities", "What is possible now.")],
        errors: &[],
        handler: |method| on(method, facts::capabilities),
    },
    RouteRow {
        method: "GET",
        path: "/v1/node",
        operation: "get_node",
        summary: "Who answers: name, version, start, jobs in hand.",
        tag: "node",
        parameters: &[],
        request: None,
        success: &[json(200, "NodeInfo", "This node.")],
        errors: &[],
        handler: |method| on(method, facts::node),
    },
    RouteRow {
        method: "GET",
        path: "/livez",
        operation: "live",
        summary: "Whether the process answers.",
        tag: "node",
        parameters: &[],
        request: None,
        success: &[json(200, "Readiness", "It does.")],
        errors: &[],
        handler: |method| on(method, facts::live),
    },
    RouteRow {
        method: "GET",
        path: "/readyz",
        operation: "ready",
        summary: "Whether work can be done now.",
        tag: "node",
        parameters: &[],
        request: None,
        success: &[
            json(200, "Readiness", "It can."),
            json(503, "Readiness", "Not yet; `waiting_for` says what is missing."),
        ],
        errors: &[],
        handler: |method| on(method, facts::ready),
    },
];

/// The table as a router.
pub(super) fn router() -> Router<App> {
    let mut router = Router::new();
    for row in ROUTES {
        let method = Method::from_bytes(row.method.as_bytes())
            .ok()
            .and_then(|method| MethodFilter::try_from(method).ok())
            .expect("a test holds the methods of the table to GET and POST");
        router = router.route(row.path, (row.handler)(method));
    }
    router.method_not_allowed_fallback(wrong_method).fallback(unknown_route)
}

async fn unknown_route(uri: Uri) -> ApiError {
    let shown: String = uri.path().chars().take(100).collect();
    ErrorBody::new(ErrorCode::RequestNotFound, format!("there is no route `{shown}`")).into()
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let shown: String = uri.path().chars().take(100).collect();
    let message = format!("the route `{shown}` does not know the method {method}");
    ApiError::from(ErrorBody::new(ErrorCode::RequestNotFound, message))
        .with_status(StatusCode::METHOD_NOT_ALLOWED)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_table_builds_a_router() {
        // Conflicting or malformed paths would panic here.
        let _ = router();
    }

    #[test]
    fn every_operation_is_there_once_and_described() {
        let (mut operations, mut addresses) = (BTreeSet::new(), BTreeSet::new());
        for row in ROUTES {
            assert!(matches!(row.method, "GET" | "POST"), "{}", row.operation);
            assert!(operations.insert(row.operation), "{} is there twice", row.operation);
            assert!(addresses.insert((row.method, row.path)), "{} is there twice", row.path);
            assert!(row.summary.ends_with('.'), "{} has no sentence", row.operation);
            assert!(!row.success.is_empty(), "{} has no answer", row.operation);
            assert!(row.request.is_none() || row.method == "POST", "{}", row.operation);
            let errors: BTreeSet<_> = row.errors.iter().chain(COMMON_ERRORS).collect();
            assert_eq!(errors.len(), row.errors.len() + COMMON_ERRORS.len(), "{}", row.operation);
        }
    }

    #[test]
    fn a_route_that_reads_a_body_says_how_that_can_go_wrong() {
        for row in ROUTES.iter().filter(|row| row.request.is_some()) {
            assert!(row.errors.contains(&ErrorCode::RequestInvalid), "{}", row.operation);
            assert!(row.errors.contains(&ErrorCode::RequestTooLarge), "{}", row.operation);
        }
    }
}
