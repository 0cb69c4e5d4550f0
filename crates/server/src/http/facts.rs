//! What is here: devices, memory, models, capabilities, the node itself and its probes. Reads of published state; none of
//! them waits for work.

use super::App;
use super::answer::ApiError;
use atelier_protocol::http::{
    Capabilities, DeviceEntry, List, MemoryEntry, ModelEntry, NodeInfo, Readiness,
};
use atelier_protocol::{ErrorBody, ErrorCode};
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;

pub(super) async fn devices(State(app): State<App>) -> Json<List<DeviceEntry>> {
    Json(List::new(app.node.devices(), None))
}

pub(super) async fn device(
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<DeviceEntry>, ApiError> {
    Ok(Json(device_named(app.node.devices(), &id, |entry| &entry.id)?))
}

pub(super) async fn memory(State(app): State<App>) -> Json<List<MemoryEntry>> {
    Json(List::new(app.node.memory(), None))
}

pub(super) async fn memory_of(
    State(app): State<App>,
    Path(device): Path<String>,
) -> Result<Json<MemoryEntry>, ApiError> {
    Ok(Json(device_named(app.node.memory(), &device, |entry| &entry.device)?))
}

fn device_named<T>(
    entries: Vec<T>,
    wanted: &str,
    id: impl Fn(&T) -> &String,
) -> Result<T, ErrorBody> {
    let known = entries.iter().map(|entry| id(entry).as_str()).collect::<Vec<_>>().join(", ");
    entries.into_iter().find(|entry| id(entry) == wanted).ok_or_else(|| {
        let shown: String = wanted.chars().take(60).collect();
        let message = format!("no device has the id `{shown}`; there are: {known}");
        ErrorBody::new(ErrorCode::DeviceNotFound, message)
    })
}

pub(super) async fn models(State(app): State<App>) -> Json<List<ModelEntry>> {
    Json(List::new(app.node.models(), None))
}

pub(super) async fn model(
    State(app): State<App>,
    Path(name): Path<String>,
) -> Result<Json<ModelEntry>, ApiError> {
    Ok(Json(app.node.model(&name)?))
}

pub(super) async fn capabilities(State(app): State<App>) -> Json<Capabilities> {
    let mut capabilities = app.node.capabilities();
    // The one limit that belongs to HTTP rather than to the engine.
    capabilities.limits.max_body_bytes = app.config.max_body_bytes;
    Json(capabilities)
}

pub(super) async fn node(State(app): State<App>) -> Json<NodeInfo> {
    Json(app.node.info())
}

pub(super) async fn live() -> Json<Readiness> {
    Json(Readiness { ok: true, waiting_for: Vec::new() })
}

pub(super) async fn ready(State(app): State<App>) -> (StatusCode, Json<Readiness>) {
    let readiness = app.node.readiness();
    let status = if readiness.ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(readiness))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_device_is_answered_with_the_known_ones() {
        let entries = || vec!["cpu".to_owned(), "cuda:0".to_owned()];
        assert_eq!(device_named(entries(), "cuda:0", |id| id), Ok("cuda:0".to_owned()));
        let error = device_named(entries(), "cuda:7", |id| id).expect_err("no such device");
        assert_eq!(error.code, ErrorCode::DeviceNotFound);
        assert!(error.message.ends_with("there are: cpu, cuda:0"), "{error:?}");
    }
}
