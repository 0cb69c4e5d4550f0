//! Around every answer: the guard, the request id, the one shape of an error, and one line in the log.
//!
//! Handlers return [`ApiError`]; its text is written only here, because only here is the request id known. An error that
//! did not come through [`ApiError`] (a router's own) is given the same shape. Prompts are never logged: the line holds
//! method, path, status and time.

use super::guard;
use atelier_protocol::http::ErrorEnvelope;
use atelier_protocol::{ErrorBody, ErrorCode};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::time::Instant;
use tracing::field::Empty;
use tracing::{Instrument, Span};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Seconds after which a request that was refused for now may come again.
const RETRY_AFTER_S: &str = "5";

/// An error on its way to the client.
#[derive(Debug)]
pub(super) struct ApiError {
    body: ErrorBody,
    status: StatusCode,
}

impl ApiError {
    /// For the one case in which the table's status is not exact: a known path with another method.
    pub(super) fn with_status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }
}

impl From<ErrorBody> for ApiError {
    fn from(body: ErrorBody) -> Self {
        let status = StatusCode::from_u16(body.code.row().http)
            .expect("the table's test holds every status between 400 and 599");
        Self { body, status }
    }
}

/// Marks an answer as an error whose text is still to be written.
#[derive(Clone)]
struct Unwritten(ErrorBody);

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(Unwritten(self.body));
        response
    }
}

/// Puts everything around a router. `listen` is the address that this node listens on.
pub(super) fn around(router: Router, listen: IpAddr) -> Router {
    router.layer(from_fn_with_state(listen, serve))
}

async fn serve(State(listen): State<IpAddr>, request: Request, next: Next) -> Response {
    let id = request_id(request.headers());
    let span = tracing::info_span!("request", request_id = %id, job = Empty);
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let started = Instant::now();
    let verdict = guard::check(&method, request.uri(), request.headers(), listen);
    let answer = async {
        match verdict {
            Err(refusal) => {
                let body = ErrorBody::new(ErrorCode::RequestForbidden, refusal.to_string());
                ApiError::from(body).into_response()
            }
            // A defect in one handler must not cost the client its answer.
            Ok(()) => {
                AssertUnwindSafe(next.run(request)).catch_unwind().await.unwrap_or_else(|_| {
                    let body = ErrorBody::new(ErrorCode::Internal, "failed to answer the request");
                    ApiError::from(body).into_response()
                })
            }
        }
    };
    let response = answer.instrument(span.clone()).await;
    let response = finish(response, &id);
    let _entered = span.enter();
    log(method.as_str(), &path, &response, started);
    response
}

/// The job that the request in hand is about, for the log.
pub(super) fn about_job(id: impl std::fmt::Display) {
    Span::current().record("job", tracing::field::display(id));
}

fn log(method: &str, path: &str, response: &Response, started: Instant) {
    let status = response.status().as_u16();
    let ms = (started.elapsed().as_secs_f64() * 1e4).round() / 10.0;
    let error = response.extensions().get::<Unwritten>().map(|Unwritten(body)| body);
    match error {
        Some(body) if status >= 500 => {
            tracing::warn!(method, path, status, ms, code = %body.code, message = %body.message);
        }
        Some(body) => tracing::info!(method, path, status, ms, code = %body.code),
        None if matches!(path, "/livez" | "/readyz") => tracing::debug!(method, path, status, ms),
        None => tracing::info!(method, path, status, ms),
    }
}

/// The client's own id when it is harmless in a log and a header, else a fresh one.
fn request_id(headers: &HeaderMap) -> String {
    headers
        .get(REQUEST_ID)
        .and_then(|value| value.to_str().ok())
        .filter(|id| (1..=128).contains(&id.len()))
        .filter(|id| id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:/+=".contains(&b)))
        .map_or_else(|| uuid::Uuid::now_v7().to_string(), str::to_owned)
}

fn finish(mut response: Response, id: &str) -> Response {
    if let Some(body) = untyped(&response) {
        response.extensions_mut().insert(Unwritten(body));
    }
    if let Some(Unwritten(body)) = response.extensions().get().cloned() {
        let code = body.code;
        let error = ErrorBody { request_id: Some(id.to_owned()), ..body };
        let text = serde_json::to_vec(&ErrorEnvelope { error })
            .expect("an error body has only text keys and finite values");
        *response.body_mut() = Body::from(text);
        let headers = response.headers_mut();
        headers.remove(axum::http::header::CONTENT_LENGTH);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if code.row().retry == atelier_protocol::Retry::Later {
            headers.insert(RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_S));
        }
    }
    let headers = response.headers_mut();
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Ok(value) = HeaderValue::from_str(id) {
        headers.insert(REQUEST_ID, value);
    }
    response
}

/// The error of an answer that failed without saying so in our words.
fn untyped(response: &Response) -> Option<ErrorBody> {
    let status = response.status();
    let failed = status.is_client_error() || status.is_server_error();
    let is_ours = response.extensions().get::<Unwritten>().is_some()
        || response.headers().get(CONTENT_TYPE).is_some_and(|t| t == "application/json");
    if !failed || is_ours {
        return None;
    }
    let code = match status {
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => ErrorCode::RequestNotFound,
        StatusCode::PAYLOAD_TOO_LARGE => ErrorCode::RequestTooLarge,
        other if other.is_client_error() => ErrorCode::RequestInvalid,
        _ => ErrorCode::Internal,
    };
    Some(ErrorBody::new(code, code.cause()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;
    use serde_json::Value;
    use tower::ServiceExt;

    fn app() -> Router {
        let refuse = || async {
            ApiError::from(ErrorBody::new(ErrorCode::ProcessingQueueFull, "the queue is full"))
        };
        let panics = || async { panic!("a defect") as &'static str };
        let bare = || async { (StatusCode::IM_A_TEAPOT, "<h1>teapot</h1>") };
        let router = Router::new()
            .route("/fine", get(|| async { "fine" }))
            .route("/refuse", get(refuse))
            .route("/panics", get(panics))
            .route("/bare", get(bare));
        around(router, IpAddr::from([127, 0, 0, 1]))
    }

    async fn ask(path: &str, lines: &[(&str, &str)]) -> (StatusCode, HeaderMap, Value) {
        let mut request = Request::builder().uri(path).header("host", "localhost");
        for (name, value) in lines {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::empty()).unwrap();
        let (parts, body) = app().oneshot(request).await.unwrap().into_parts();
        let bytes = axum::body::to_bytes(body, 1 << 20).await.unwrap();
        (parts.status, parts.headers, serde_json::from_slice(&bytes).unwrap_or_default())
    }

    #[tokio::test]
    async fn every_answer_carries_the_request_id_that_a_sane_client_chose() {
        let (_, headers, _) = ask("/fine", &[("x-request-id", "abc-1")]).await;
        assert_eq!(headers["x-request-id"], "abc-1");
        for odd in ["", "a b", "a\"b", &"x".repeat(129)] {
            let (_, headers, _) = ask("/fine", &[("x-request-id", odd)]).await;
            let id = headers["x-request-id"].to_str().unwrap().to_owned();
            assert!(uuid::Uuid::parse_str(&id).is_ok(), "{odd:?} became {id}");
        }
    }

    #[tokio::test]
    async fn an_error_has_the_one_shape_with_the_request_id_inside() {
        let (status, headers, body) = ask("/refuse", &[("x-request-id", "abc-1")]).await;
        assert_eq!(status, 429);
        assert_eq!(headers["retry-after"], "5");
        assert_eq!(headers["content-type"], "application/json");
        assert_eq!(body["error"]["code"], "processing.queue_full");
        assert_eq!(body["error"]["request_id"], "abc-1");
        assert_eq!(body["error"]["retry"], "later");
    }

    #[tokio::test]
    async fn unknown_routes_and_bare_errors_get_the_same_shape() {
        let (status, _, body) = ask("/nowhere", &[]).await;
        assert_eq!((status.as_u16(), &body["error"]["code"]), (404, &"request.not_found".into()));
        let (status, _, body) = ask("/bare", &[]).await;
        assert_eq!((status.as_u16(), &body["error"]["code"]), (418, &"request.invalid".into()));
    }

    #[tokio::test]
    async fn a_handler_that_panics_still_answers() {
        let (status, _, body) = ask("/panics", &[]).await;
        assert_eq!((status.as_u16(), &body["error"]["code"]), (500, &"internal".into()));
    }

    #[tokio::test]
    async fn the_guard_stands_before_unknown_routes_too() {
        let (status, headers, body) = ask("/nowhere", &[("origin", "http://evil.example")]).await;
        assert_eq!((status.as_u16(), &body["error"]["code"]), (403, &"request.forbidden".into()));
        assert!(headers.contains_key("x-request-id"));
    }
}
