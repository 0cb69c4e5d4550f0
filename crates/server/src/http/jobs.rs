//! Jobs: submit, validate, list, get, cancel.

use super::App;
use super::answer::{ApiError, about_job};
use super::input::{self, JsonObject, Parameters};
use super::prefer::{self, IDEMPOTENT_REPLAYED, PREFERENCE_APPLIED};
use atelier_engine::node::Submission;
use atelier_protocol::JobId;
use atelier_protocol::http::{Job, JobState, List, Validation};
use axum::Json;
use axum::extract::{Path, State};
use axum::http::header::LOCATION;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use std::time::Duration;

const DEFAULT_PAGE: u32 = 50;
const LARGEST_PAGE: u32 = 200;

pub(super) async fn submit(
    State(app): State<App>,
    headers: HeaderMap,
    JsonObject(body): JsonObject,
) -> Result<Response, ApiError> {
    let key = prefer::idempotency_key(&headers)?;
    let (job, replayed) = match app.node.submit(body, key).await? {
        Submission::Accepted(job) => (job, false),
        Submission::Replayed(job) => (job, true),
    };
    about_job(job.id);
    let location = format!("/v1/jobs/{}", job.id);
    let granted = prefer::wait(&headers, app.config.max_wait);
    let (status, job) = match granted {
        Some(limit) => {
            let job = wait(&app, job.id, limit).await?;
            (if job.state.is_terminal() { StatusCode::OK } else { StatusCode::ACCEPTED }, job)
        }
        None => (StatusCode::ACCEPTED, job),
    };
    let mut response = (status, Json(job)).into_response();
    let headers = response.headers_mut();
    let location = HeaderValue::from_str(&location).expect("a UUID is ASCII");
    headers.insert(LOCATION, location);
    if let Some(limit) = granted {
        headers.insert(PREFERENCE_APPLIED, prefer::applied(limit));
    }
    if replayed {
        headers.insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// The job at its end, when the time is over, or when the node stops. The job lives on in each case.
async fn wait(app: &App, id: JobId, limit: Duration) -> Result<Job, ApiError> {
    let job = tokio::select! {
        job = app.node.wait(id, limit) => job?,
        () = app.stopping() => app.node.job(id).await?,
    };
    Ok(job)
}

pub(super) async fn validate(
    State(app): State<App>,
    JsonObject(body): JsonObject,
) -> Json<Validation> {
    Json(app.node.validate(body).await)
}

pub(super) async fn list(State(app): State<App>, uri: Uri) -> Result<Json<List<Job>>, ApiError> {
    let mut parameters = Parameters::of(&uri, &["state", "limit", "cursor"])?;
    let states = "one of queued, running, succeeded, failed, cancelled";
    let state = parameters.read("state", states, |_: &JobState| true);
    let limits = "a whole number from 1 to 200";
    let limit = parameters.read("limit", limits, |n| (1..=LARGEST_PAGE).contains(n));
    let cursor = parameters.text("cursor").map(str::to_owned);
    parameters.check()?;
    Ok(Json(app.node.jobs(state, cursor, limit.unwrap_or(DEFAULT_PAGE)).await?))
}

pub(super) async fn get(State(app): State<App>, path: Path<String>) -> Result<Json<Job>, ApiError> {
    let id = input::job_id(path)?;
    about_job(id);
    Ok(Json(app.node.job(id).await?))
}

pub(super) async fn cancel(
    State(app): State<App>,
    path: Path<String>,
) -> Result<Json<Job>, ApiError> {
    let id = input::job_id(path)?;
    about_job(id);
    Ok(Json(app.node.cancel(id).await?))
}
