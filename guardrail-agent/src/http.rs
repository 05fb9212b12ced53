//! The HTTP surface: `/metrics`, `/healthz`, `/readyz`, `/v1/graph`, `/v1/epochs`. It asks the
//! observer task and never touches its state.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Path, RawQuery, State},
    http::{HeaderMap, StatusCode, header},
    middleware,
    response::{IntoResponse, Response},
    routing::get,
};
use guardrail_graph::snapshot::{API_VERSION, Chunks};
use guardrail_kernel::clock::now;
use hyper::body::{Bytes, Frame};
use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    task::spawn_blocking,
    time::Instant,
};

use crate::{
    answer::{Answer, Joined, asked},
    auth::{self, Guard},
    state::Kept,
};

/// `Content-Type` of the OpenMetrics text format.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// How long the kernel's table of flows may go unread before `/healthz` says so: a multiple of the
/// time between two sweeps. A probe that fails a few times in a row then has the agent restarted,
/// which is all that helps.
const STALLED: Duration = Duration::from_secs(15);

/// Pieces in which the graph is sent: what one connection holds of it.
const PIECE_BYTES: usize = 64 << 10;

/// What a request asks of the observer task.
#[derive(Debug)]
pub enum Query {
    /// The graph; none if too many are being sent already.
    Graph(oneshot::Sender<Option<Answer>>),
    /// The closed epochs.
    Epochs(oneshot::Sender<Vec<Kept>>),
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
    /// No list of the cluster's objects ever came: no pod, Service or node has a name.
    pub nothing_heard: bool,
    /// What was given up, with the reason: readiness does not wait for it.
    pub given_up: Vec<String>,
    /// When the kernel's table of flows had last been read to its end; none before observation
    /// begins.
    pub swept: Option<Instant>,
}

impl Readiness {
    /// Whether nothing is awaited any more.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.hooks && self.sockets && self.inventory
    }

    /// For how long the graph has been standing still, if it is too long.
    fn stalled(&self, now: Instant) -> Option<Duration> {
        Some(now.saturating_duration_since(self.swept?)).filter(|since| *since >= STALLED)
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
        if self.nothing_heard {
            page += "[!] nothing is known of the cluster: no list ever came\n";
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

struct Surface {
    queries: mpsc::Sender<Query>,
    ready: watch::Receiver<Readiness>,
    /// Joining epochs takes memory: one answer at a time.
    joining: Semaphore,
}

/// The surface. With a guard, `/metrics`, `/v1/graph` and `/v1/epochs` need its permission;
/// `/healthz` and `/readyz` are always open.
pub fn router(queries: mpsc::Sender<Query>, ready: watch::Receiver<Readiness>, guard: Option<Arc<Guard>>) -> Router {
    let mut named = Router::new()
        .route("/metrics", get(metrics))
        .route("/v1/graph", get(graph))
        .route("/v1/epochs", get(epochs))
        .route("/v1/epochs/{id}", get(epoch));
    if let Some(guard) = guard {
        named = named.route_layer(middleware::from_fn_with_state(guard, auth::guard));
    }
    Router::new()
        .route("/", get(async || "guardrail-agent: /metrics /healthz /readyz /v1/graph /v1/epochs\n"))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .merge(named)
        .with_state(Arc::new(Surface { queries, ready, joining: Semaphore::new(1) }))
}

async fn healthz(State(surface): State<Arc<Surface>>) -> Response {
    match surface.ready.borrow().stalled(Instant::now()) {
        None => "ok\n".into_response(),
        Some(since) => {
            let page = format!("the kernel's table of flows was last read {} s ago\n", since.as_secs());
            (StatusCode::SERVICE_UNAVAILABLE, page).into_response()
        }
    }
}

async fn readyz(State(surface): State<Arc<Surface>>) -> Response {
    let ready = surface.ready.borrow().clone();
    let status = if ready.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, ready.page()).into_response()
}

async fn metrics(State(surface): State<Arc<Surface>>) -> Response {
    match ask(&surface.queries, Query::Metrics).await {
        Ok(page) => ([(header::CONTENT_TYPE, OPENMETRICS)], page).into_response(),
        Err(refusal) => refusal,
    }
}

async fn graph(State(surface): State<Arc<Surface>>, RawQuery(query): RawQuery) -> Response {
    let asked = match asked(query.as_deref().unwrap_or_default(), now()) {
        Ok(asked) => asked,
        Err(why) => return (StatusCode::BAD_REQUEST, why + "\n").into_response(),
    };
    let answer = match ask(&surface.queries, Query::Graph).await {
        Ok(Some(answer)) => answer,
        Ok(None) => return busy(),
        Err(refusal) => return refusal,
    };
    let Ok(_one) = surface.joining.acquire().await else { return busy() };
    match spawn_blocking(move || answer.joined(&asked)).await {
        Ok(Ok(Joined { document, facts })) => {
            let body = Body::new(Pieces(document.chunks(PIECE_BYTES).with_facts(facts)));
            ([(header::CONTENT_TYPE, "application/json")], body).into_response()
        }
        Ok(Err(why)) => (why.status(), format!("{why}\n")).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// The closed epochs, oldest end first.
async fn epochs(State(surface): State<Arc<Surface>>) -> Response {
    match ask(&surface.queries, Query::Epochs).await {
        Ok(kept) => {
            let epochs: Vec<_> = kept.iter().map(Kept::entry).collect();
            let list = serde_json::json!({"apiVersion": API_VERSION, "kind": "EpochList", "epochs": epochs});
            ([(header::CONTENT_TYPE, "application/json")], format!("{list}\n")).into_response()
        }
        Err(refusal) => refusal,
    }
}

/// One of them, as it is stored.
async fn epoch(State(surface): State<Arc<Surface>>, Path(id): Path<String>, headers: HeaderMap) -> Response {
    let kept = match ask(&surface.queries, Query::Epochs).await {
        Ok(kept) => kept.into_iter().find(|kept| kept.id == id),
        Err(refusal) => return refusal,
    };
    let Some(kept) = kept else {
        return (StatusCode::NOT_FOUND, "there is no such epoch: /v1/epochs lists them\n").into_response();
    };
    // It never changes.
    let tag = [(header::ETAG, format!("\"{id}\""))];
    if headers.get(header::IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == tag[0].1.as_bytes()) {
        return (StatusCode::NOT_MODIFIED, tag).into_response();
    }
    match spawn_blocking(move || kept.read()).await {
        Ok(Ok(bytes)) => (tag, [(header::CONTENT_TYPE, "application/octet-stream")], bytes).into_response(),
        Ok(Err(why)) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{why}\n")).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// A document on its way out: each piece is made when there is room for it, so a slow reader costs
/// no memory.
struct Pieces(Chunks);

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.next().map(|piece| Ok(Frame::data(piece.into()))))
    }
}

fn busy() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "1")], "busy, try again in a second\n").into_response()
}

/// The queue of queries is bounded: when it is full the caller is told to come back, instead of the
/// agent remembering everybody.
async fn ask<T>(queries: &mpsc::Sender<Query>, query: impl FnOnce(oneshot::Sender<T>) -> Query) -> Result<T, Response> {
    let (reply, answer) = oneshot::channel();
    if queries.try_send(query(reply)).is_err() {
        return Err(busy());
    }
    answer.await.map_err(|_| (StatusCode::SERVICE_UNAVAILABLE, "shutting down\n").into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_knows_nothing_says_so_with_the_reasons() {
        let mut ready = Readiness { hooks: true, sockets: true, inventory: true, ..Readiness::default() };
        assert_eq!(ready.page(), "[+] kernel hooks ok\n[+] socket inventory ok\n[+] cluster inventory ok\nready\n");
        ready.nothing_heard = true;
        ready.given_up = vec!["pods: the API server failed (500): etcd".to_owned()];
        assert_eq!(
            ready.page(),
            "[+] kernel hooks ok\n[+] socket inventory ok\n[+] cluster inventory ok\n\
             [!] nothing is known of the cluster: no list ever came\n\
             [!] without pods: the API server failed (500): etcd\nready\n"
        );
    }
}
