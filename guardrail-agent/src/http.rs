//! The HTTP surface: `/metrics`, `/healthz`, `/readyz`, `/v1/graph`. It asks the observer task and never touches its state.

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    middleware,
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::sync::{mpsc, oneshot, watch};

use crate::auth::{self, Guard};

/// `Content-Type` of the OpenMetrics text format.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What a request asks of the observer task.
#[derive(Debug)]
pub enum Query {
    /// The snapshot as JSON.
    Graph(oneshot::Sender<Vec<u8>>),
    /// The metrics as OpenMetrics text.
    Metrics(oneshot::Sender<String>),
}

/// What stands between start and readiness.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// Every kernel hook is attached.
    pub hooks: bool,
    /// Sockets that were open before are inventoried.
    pub sockets: bool,
    /// The inventory's initial lists are in, or given up.
    pub inventory: bool,
    /// Lists that are awaited.
    pub pending_lists: Vec<&'static str>,
    /// What was given up, with the reason: readiness does not wait for it.
    pub given_up: Vec<String>,
}

impl Readiness {
    /// Whether nothing is awaited any more.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.hooks && self.sockets && self.inventory
    }

    fn page(&self) -> String {
        let mut page = String::new();
        for (what, done) in
            [("kernel hooks", self.hooks), ("socket inventory", self.sockets), ("cluster inventory", self.inventory)]
        {
            page += if done { "[+] " } else { "[-] " };
            page += what;
            page += if done { " ok\n" } else { " pending\n" };
        }
        for list in &self.pending_lists {
            page += "[-] list of ";
            page += list;
            page += " pending\n";
        }
        for reason in &self.given_up {
            page += "[!] without ";
            page += reason;
            page += "\n";
        }
        page += if self.is_ready() { "ready\n" } else { "not ready\n" };
        page
    }
}

#[derive(Clone)]
struct Surface {
    queries: mpsc::Sender<Query>,
    ready: watch::Receiver<Readiness>,
}

/// The surface. With a guard, `/metrics` and `/v1/graph` need its permission; `/healthz` and `/readyz` are always open.
pub fn router(queries: mpsc::Sender<Query>, ready: watch::Receiver<Readiness>, guard: Option<Arc<Guard>>) -> Router {
    let mut named = Router::new().route("/metrics", get(metrics)).route("/v1/graph", get(graph));
    if let Some(guard) = guard {
        named = named.route_layer(middleware::from_fn_with_state(guard, auth::guard));
    }
    Router::new()
        .route("/", get(async || "guardrail-agent: /metrics /healthz /readyz /v1/graph\n"))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .merge(named)
        .with_state(Arc::new(Surface { queries, ready }))
}

async fn readyz(State(surface): State<Arc<Surface>>) -> Response {
    let ready = surface.ready.borrow().clone();
    let status = if ready.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, ready.page()).into_response()
}

async fn metrics(State(surface): State<Arc<Surface>>) -> Response {
    ask(&surface.queries, Query::Metrics, OPENMETRICS).await
}

async fn graph(State(surface): State<Arc<Surface>>) -> Response {
    ask(&surface.queries, Query::Graph, "application/json").await
}

/// The queue of queries is bounded: when it is full the caller is told to come back, instead of the agent remembering everybody.
async fn ask<T: IntoResponse>(
    queries: &mpsc::Sender<Query>,
    query: impl FnOnce(oneshot::Sender<T>) -> Query,
    content_type: &'static str,
) -> Response {
    let (reply, answer) = oneshot::channel();
    if queries.try_send(query(reply)).is_err() {
        return (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "1")], "busy, try again in a second\n")
            .into_response();
    }
    match answer.await {
        Ok(body) => ([(header::CONTENT_TYPE, content_type)], body).into_response(),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "shutting down\n").into_response(),
    }
}
