//! One agent's snapshots, through a port-forward of the API server to the agent's loopback
//! listener.
//!
//! The user needs the verbs `get` and `create` on pods/portforward: a port-forward over a websocket
//! is a GET, and since Kubernetes 1.35 the API server asks for `create` as well. No token is sent
//! to the agent.

use std::{fmt, time::Duration};

use guardrail_graph::{Snapshot, snapshot::span::EVERYTHING};
use http_body_util::{BodyExt as _, Empty};
use hyper::{
    Request, Response, StatusCode,
    body::{Body as _, Bytes, Incoming},
    header,
};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::api::Portforwarder;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout, timeout_at},
};

use crate::{
    Api,
    text::{plain, sentence},
};

/// The port of `--local-listen` in deploy/base/daemonset.yaml.
const PORT: u16 = 9465;
/// The largest answer of one agent, bytes. An agent keeps at most 100,000 edges, which take a third
/// of it.
const MAX_ANSWER_BYTES: usize = 256 << 20;
/// The largest error page that is read, bytes.
const MAX_ERROR_BYTES: usize = 4 << 10;
/// How long a broken port-forward may take to give its reason.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Why an agent gave no snapshot.
#[derive(Debug)]
pub enum Miss {
    /// The user may not forward its port; what the API server says.
    Forbidden(String),
    /// Another reason. It completes a sentence that begins with the node.
    Because(String),
}

impl fmt::Display for Miss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forbidden(said) => write!(f, "no permission to forward its port: {said}"),
            Self::Because(reason) => f.write_str(reason),
        }
    }
}

/// What an agent's HTTP server replies.
enum Reply {
    Body(Vec<u8>),
    /// It has too much to do right now.
    Busy,
}

/// A port-forward that ends when it is dropped, whether the other end listens or not.
struct Forward(Portforwarder);

impl Drop for Forward {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Asks one agent for its graph, within `limit`. Gives what that follows from: a document of each
/// epoch.
///
/// # Errors
/// Why there is none.
pub async fn snapshots(api: &Api, namespace: &str, pod: &str, limit: Duration) -> Result<Vec<Snapshot>, Miss> {
    let pods = kube::Api::namespaced(api.client().await, namespace);
    let deadline = Instant::now() + limit;
    let body = loop {
        match timeout_at(deadline, exchange(&pods, pod)).await {
            Ok(Ok(Reply::Body(body))) => break body,
            Ok(Ok(Reply::Busy)) if Instant::now() + Duration::from_secs(1) < deadline => {
                sleep(Duration::from_secs(1)).await;
            }
            Ok(Ok(Reply::Busy)) => return Err(Miss::Because("its agent is busy".to_owned())),
            Ok(Err(miss)) => return Err(miss),
            Err(_) => return Err(Miss::Because(format!("no whole answer within {} s", limit.as_secs()))),
        }
    };
    // Parsing may take a while, and the other agents' answers must not wait for it.
    let name = pod.to_owned();
    let parsed = tokio::task::spawn_blocking(move || {
        let text = std::str::from_utf8(&body).map_err(|_| format!("{name}: no text"))?;
        Snapshot::parts_from_json(text, &name).map_err(|e| e.to_string())
    });
    match parsed.await {
        Ok(Ok(snapshots)) => Ok(snapshots),
        Ok(Err(why)) => Err(Miss::Because(format!("its answer makes no sense: {}", plain(&why)))),
        Err(e) => Err(Miss::Because(format!("its answer cannot be read: {e}"))),
    }
}

/// One port-forward with one request.
async fn exchange(pods: &kube::Api<Pod>, pod: &str) -> Result<Reply, Miss> {
    let mut forward = Forward(pods.portforward(pod, &[PORT]).await.map_err(refused)?);
    let (Some(stream), Some(error)) = (forward.0.take_stream(PORT), forward.0.take_error(PORT)) else {
        return Err(Miss::Because("the port-forward has no stream".to_owned()));
    };
    let failed = async {
        match error.await {
            Some(said) => Miss::Because(format!("the port-forward failed: {}", plain(&said))),
            None => std::future::pending().await,
        }
    };
    let mut failed = std::pin::pin!(failed);
    // The task ends with this function, also when the time limit cuts it off.
    let mut connection = JoinSet::new();
    let request = async {
        let (mut sender, http) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        connection.spawn(http);
        let request = Request::get(EVERYTHING)
            .header(header::HOST, "localhost")
            .header(header::USER_AGENT, concat!("guardrail/", env!("CARGO_PKG_VERSION")))
            .header(header::CONNECTION, "close")
            .body(Empty::<Bytes>::new());
        // Its parts are constants that are valid.
        let request = request.unwrap_or_default();
        sender.send_request(request).await
    };
    let answer = tokio::select! {
        answer = async { read(request.await?).await } => answer,
        miss = &mut failed => return Err(miss),
    };
    match answer {
        Ok(answer) => answer.map_err(Miss::Because),
        // If the kubelet could not connect, it sends the reason.
        Err(broken) => Err(timeout(LAST_WORDS, failed)
            .await
            .unwrap_or_else(|_| Miss::Because(format!("the connection to its agent broke: {}", sentence(&broken))))),
    }
}

/// Reads an answer. The inner error is a reason other than the transport.
async fn read(answer: Response<Incoming>) -> Result<Result<Reply, String>, hyper::Error> {
    let status = answer.status();
    if status == StatusCode::SERVICE_UNAVAILABLE {
        return Ok(Ok(Reply::Busy));
    }
    let too_large = || Ok(Err(format!("its answer has more than {} MiB", MAX_ANSWER_BYTES >> 20)));
    let ok = status == StatusCode::OK;
    let limit = if ok { MAX_ANSWER_BYTES } else { MAX_ERROR_BYTES };
    let mut body = answer.into_body();
    if ok && body.size_hint().lower() > limit as u64 {
        return too_large();
    }
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            if bytes.len() + data.len() > limit {
                if ok {
                    return too_large();
                }
                break;
            }
            bytes.extend_from_slice(&data);
        }
    }
    if ok {
        return Ok(Ok(Reply::Body(bytes)));
    }
    let said = String::from_utf8_lossy(&bytes);
    Ok(Err(format!("its agent answers {status}: {}", plain(said.lines().next().unwrap_or_default()))))
}

/// The reason behind a port-forward that the API server refused.
fn refused(error: kube::Error) -> Miss {
    match &error {
        kube::Error::Api(status) if status.code == 403 => Miss::Forbidden(plain(&status.message)),
        kube::Error::Api(status) if status.code == 404 => Miss::Because("its pod is gone".to_owned()),
        kube::Error::Api(status) => {
            Miss::Because(format!("the API server answers {}: {}", status.code, plain(&status.message)))
        }
        other => Miss::Because(format!("no port-forward: {}", sentence(other))),
    }
}
