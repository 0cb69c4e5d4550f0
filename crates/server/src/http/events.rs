//! Events as a stream of server-sent events. Resumable by id; a job's stream ends with its `end`, or without one when the
//! node stops, in which case the client comes back with the last id it saw.

use super::App;
use super::answer::{ApiError, about_job};
use super::input::{self, Parameters};
use atelier_engine::node::StreamEvent;
use atelier_protocol::http::EventKind;
use atelier_protocol::{Detail, ErrorBody, ErrorCode};
use axum::extract::{Path, State};
use axum::http::header::CACHE_CONTROL;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Uri};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde_json::Value;
use std::convert::Infallible;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// A comment is sent after this much silence, so that both ends can tell a quiet stream from a dead one.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(15);

/// What a stream is about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    Job,
    Node,
}

pub(super) async fn of_job(
    State(app): State<App>,
    path: Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let id = input::job_id(path)?;
    about_job(id);
    let events = app.node.events(Some(id), after(&uri, &headers)?).await?;
    Ok(answer(events, app.stopping, Scope::Job))
}

pub(super) async fn of_node(
    State(app): State<App>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let events = app.node.events(None, after(&uri, &headers)?).await?;
    Ok(answer(events, app.stopping, Scope::Node))
}

/// The id to go on after. The header wins: a browser that comes back sends it along with the old address.
fn after(uri: &Uri, headers: &HeaderMap) -> Result<Option<u64>, ErrorBody> {
    let mut parameters = Parameters::of(uri, &["after"])?;
    let asked = parameters.read("after", "an event id", |_: &u64| true);
    parameters.check()?;
    let Some(header) = headers.get(LAST_EVENT_ID).filter(|value| !value.is_empty()) else {
        return Ok(asked);
    };
    match header.to_str().ok().and_then(|text| text.trim().parse().ok()) {
        Some(id) => Ok(Some(id)),
        None => {
            let problem = Detail::new("Last-Event-ID", "is not an event id");
            let message = "the header Last-Event-ID is not an event id";
            Err(ErrorBody::new(ErrorCode::RequestInvalid, message).with_details(vec![problem]))
        }
    }
}

fn answer(
    events: mpsc::Receiver<StreamEvent>,
    stopping: watch::Receiver<bool>,
    scope: Scope,
) -> Response {
    let stream = stream::unfold(Some((events, stopping)), move |open| async move {
        let (mut events, mut stopping) = open?;
        let event = tokio::select! {
            biased; // what has happened is told before the stream ends
            event = events.recv() => event?,
            _ = stopping.wait_for(|stopping| *stopping) => return None,
        };
        let is_last = scope == Scope::Job && event.kind == EventKind::End;
        let open = if is_last { None } else { Some((events, stopping)) };
        Some((Ok::<_, Infallible>(written(event, scope)), open))
    });
    let heartbeat = KeepAlive::new().interval(HEARTBEAT);
    let mut response = Sse::new(stream).keep_alive(heartbeat).into_response();
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn written(event: StreamEvent, scope: Scope) -> Event {
    let StreamEvent { id, job, kind, mut data } = event;
    // The node's stream mixes jobs, so each event names its own. `end` is the job itself and says so by its `id`.
    if scope == Scope::Node
        && kind != EventKind::End
        && let Value::Object(fields) = &mut data
    {
        fields.entry("job").or_insert_with(|| job.to_string().into());
    }
    let written = Event::default().event(kind.word()).data(data.to_string());
    match id {
        Some(id) => written.id(id.to_string()),
        None => written,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use atelier_protocol::JobId;
    use serde_json::json;

    fn event(id: Option<u64>, kind: EventKind, data: Value) -> StreamEvent {
        StreamEvent { id, job: JobId(uuid::Uuid::nil()), kind, data }
    }

    async fn text(scope: Scope, stop: bool) -> String {
        let (sender, events) = mpsc::channel(8);
        let (_stopper, stopping) = watch::channel(stop);
        for event in [
            event(Some(7), EventKind::State, json!({"state": "running"})),
            event(None, EventKind::Progress, json!({"step": 1, "note": "two\nlines"})),
            event(Some(9), EventKind::End, json!({"id": "x"})),
            event(Some(10), EventKind::State, json!({"state": "queued"})),
        ] {
            sender.send(event).await.unwrap();
        }
        if !stop {
            drop(sender);
        }
        let response = answer(events, stopping, scope);
        assert_eq!(response.headers()["cache-control"], "no-store");
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[tokio::test]
    async fn a_jobs_stream_closes_after_its_end() {
        assert_eq!(
            text(Scope::Job, false).await,
            "event: state\ndata: {\"state\":\"running\"}\nid: 7\n\n\
             event: progress\ndata: {\"note\":\"two\\nlines\",\"step\":1}\n\n\
             event: end\ndata: {\"id\":\"x\"}\nid: 9\n\n"
        );
    }

    #[tokio::test]
    async fn the_nodes_stream_names_the_job_of_each_event_and_goes_on_after_an_end() {
        let text = text(Scope::Node, false).await;
        let job = uuid::Uuid::nil();
        assert!(
            text.contains(&format!("data: {{\"job\":\"{job}\",\"state\":\"running\"}}")),
            "{text}"
        );
        assert!(text.contains("data: {\"id\":\"x\"}"), "{text}");
        assert!(text.contains("id: 10"), "{text}");
    }

    #[tokio::test]
    async fn a_stopping_node_tells_what_has_happened_and_closes_the_stream() {
        assert!(text(Scope::Node, true).await.contains("id: 10"));
    }

    #[test]
    fn the_header_wins_over_the_address() {
        let uri: Uri = "/v1/events?after=3".parse().unwrap();
        let mut headers = HeaderMap::new();
        assert_eq!(after(&uri, &headers), Ok(Some(3)));
        headers.insert(LAST_EVENT_ID, HeaderValue::from_static("8"));
        assert_eq!(after(&uri, &headers), Ok(Some(8)));
        headers.insert(LAST_EVENT_ID, HeaderValue::from_static("x"));
        assert!(after(&uri, &headers).is_err());
        assert!(after(&"/v1/events?after=x".parse().unwrap(), &HeaderMap::new()).is_err());
    }
}
