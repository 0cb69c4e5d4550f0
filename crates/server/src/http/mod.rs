//! The HTTP API: a table of routes, and around each answer the same guard, request id and error shape.
//!
//! Handlers read, ask the [`Node`] and write; no decision is taken here that a test of the engine could not see.
//! `routes` is the one list of what exists; `guard` decides whom to listen to; `answer` renders every error.

mod answer;
mod artifacts;
mod events;
mod facts;
mod guard;
mod input;
mod jobs;
mod prefer;
mod routes;

pub(crate) use artifacts::extension;
pub(crate) use events::HEARTBEAT;
pub use routes::{Answer, COMMON_ERRORS, Parameter, Place, ROUTES, RouteRow, Success};

use atelier_engine::node::Node;
use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use std::net::IpAddr;
use std::time::Duration;
use tokio::sync::watch;

/// What the HTTP part needs of the settings.
#[derive(Clone, Copy, Debug)]
pub struct HttpConfig {
    /// The address that the node listens on.
    pub listen: IpAddr,
    pub max_body_bytes: u64,
    /// Longest time that a request with `Prefer: wait` is held.
    pub max_wait: Duration,
}

/// What every handler may use.
#[derive(Clone)]
pub(crate) struct App {
    node: Node,
    config: HttpConfig,
    /// Becomes true when the node is to end: long answers end then.
    stopping: watch::Receiver<bool>,
}

impl App {
    /// Resolves when the node is to end.
    async fn stopping(&self) {
        // An error means that the sender is gone, and with it the server.
        let _ = self.stopping.clone().wait_for(|stopping| *stopping).await;
    }
}

/// The whole API over a node. Streams and waiting requests end when `stopping` becomes true.
pub fn router(node: Node, config: HttpConfig, stopping: watch::Receiver<bool>) -> Router {
    let app = App { node, config, stopping };
    let routes = routes::router().layer(from_fn_with_state(app.clone(), touch)).with_state(app);
    answer::around(routes, config.listen)
}

/// Probes come from monitors, which must not keep an idle node alive.
async fn touch(State(app): State<App>, request: Request, next: Next) -> Response {
    if !matches!(request.uri().path(), "/livez" | "/readyz") {
        app.node.touch();
    }
    next.run(request).await
}
