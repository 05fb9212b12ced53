//! Requests to the API server, and what can go wrong with them.
//!
//! The crate kube connects and authenticates. Status codes are read here, because each needs
//! another reaction.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use http::{HeaderMap, Method, Request, Response, header};
use http_body_util::BodyExt as _;
use hyper::body::Bytes;
use kube::{
    Client, Config,
    client::Body,
    config::{InClusterError, InferConfigError, KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use serde::Deserialize;
use tokio::{sync::Mutex, time::timeout};

use crate::text::{escaped, sentence};

/// The largest answer that is read whole (a page of a list), bytes.
const MAX_BODY: usize = 64 << 20;
/// The largest part of an error answer that is read, bytes.
const MAX_STATUS: usize = 16 << 10;
/// Shortest time between two readings of the credentials, however many requests are refused with
/// 401.
const RENEWAL: Duration = Duration::from_millis(250);
/// Until a connection to the API server is there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest `Retry-After` that is respected.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// Why there is no API server to talk to.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Neither a kubeconfig nor a service account.
    #[error("no API server: {0}; run it in a pod with a service account, or set KUBECONFIG")]
    NotFound(#[from] InferConfigError),
    /// The kubeconfig that the environment names has no such context.
    #[error("the kubeconfig: {0}")]
    Context(#[from] KubeconfigError),
    /// No service account where one was asked for.
    #[error("no service account of a pod: {0}")]
    NoPod(#[from] InClusterError),
    /// The kubeconfig cannot be read, or makes no sense.
    #[error("the kubeconfig {}: {source}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why.
        source: KubeconfigError,
    },
    /// The credentials or certificates cannot be used.
    #[error("cannot set up the connection to the API server: {0}")]
    Client(kube::Error),
}

/// Where address and credentials of the API server come from. They are read again when the server
/// refuses them.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// The pod's service account, whatever the environment names: it has no contexts.
    pub in_cluster: bool,
    /// A kubeconfig file; without it `KUBECONFIG`, else `~/.kube/config`, else the pod's service
    /// account.
    pub kubeconfig: Option<PathBuf>,
    /// A context of the kubeconfig; without it the current one.
    pub context: Option<String>,
}

impl Source {
    /// The current context of a kubeconfig file.
    #[must_use]
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self { kubeconfig: Some(path.into()), ..Self::default() }
    }

    async fn config(&self) -> Result<Config, ConnectError> {
        if self.in_cluster {
            return Ok(Config::incluster()?);
        }
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        match &self.kubeconfig {
            Some(path) => {
                let failed = |source| ConnectError::Kubeconfig { path: path.clone(), source };
                let file = Kubeconfig::read_from(path).map_err(failed)?;
                Config::from_custom_kubeconfig(file, &options).await.map_err(failed)
            }
            // Only a kubeconfig has contexts, so a pod's service account does not count.
            None if self.context.is_some() => Ok(Config::from_kubeconfig(&options).await?),
            None => Ok(Config::infer().await?),
        }
    }

    async fn client(&self, user_agent: &'static str) -> Result<Client, ConnectError> {
        let mut config = self.config().await?;
        // Callers retry themselves: they log, count and wait in their own way.
        config.default_retry = false;
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        config.headers.push((header::USER_AGENT, header::HeaderValue::from_static(user_agent)));
        Client::try_from(config).map_err(ConnectError::Client)
    }
}

/// Why a request or a stream failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// 401: the server does not accept the token, or no longer.
    #[error("the API server does not accept the credentials (401)")]
    Unauthorized,
    /// 403: no permission.
    #[error("not permitted (403): {0}")]
    Forbidden(String),
    /// 404: the server does not serve this resource.
    #[error("the API server does not serve it (404)")]
    NotServed,
    /// 410: the resource version or the page to continue from is too old.
    #[error("the resource version is too old (410)")]
    Expired,
    /// Another 4xx: the server rejects the request itself.
    #[error("the API server refuses the request ({status}): {message}")]
    Refused {
        /// Status code.
        status: u16,
        /// The server's message.
        message: String,
    },
    /// 429: too many requests.
    #[error("the API server is busy (429)")]
    Throttled {
        /// How long the server asks to wait.
        retry_after: Option<Duration>,
    },
    /// 5xx.
    #[error("the API server failed ({status}): {message}")]
    Server {
        /// Status code.
        status: u16,
        /// The server's message.
        message: String,
        /// How long the server asks to wait.
        retry_after: Option<Duration>,
    },
    /// No connection, or it broke.
    #[error("no connection to the API server: {0}")]
    Transport(String),
    /// The server sent nothing for too long.
    #[error("the API server did not answer in time")]
    Stalled,
    /// The stream ended in the middle.
    #[error("the stream ended in the middle of an event or of the first list")]
    Cut,
    /// The server sent what is no list and no event.
    #[error("the API server sent something that is no list and no event: {0}")]
    Malformed(String),
    /// A page or an event is larger than the limit.
    #[error("the API server sent more than is read at once")]
    TooLarge,
}

impl Failure {
    /// Reasons as `/metrics` shows them.
    pub const REASONS: [&'static str; 12] = [
        "unauthorized",
        "forbidden",
        "not_served",
        "expired",
        "refused",
        "throttled",
        "server_error",
        "transport",
        "stalled",
        "cut",
        "malformed",
        "too_large",
    ];

    /// Which of [`Failure::REASONS`].
    pub(crate) const fn index(&self) -> usize {
        match self {
            Self::Unauthorized => 0,
            Self::Forbidden(_) => 1,
            Self::NotServed => 2,
            Self::Expired => 3,
            Self::Refused { .. } => 4,
            Self::Throttled { .. } => 5,
            Self::Server { .. } => 6,
            Self::Transport(_) => 7,
            Self::Stalled => 8,
            Self::Cut => 9,
            Self::Malformed(_) => 10,
            Self::TooLarge => 11,
        }
    }

    /// How long the server asks to wait, if it says so.
    pub(crate) const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Throttled { retry_after } | Self::Server { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// What an error status means.
    pub(crate) fn of_status(status: u16, message: String, retry_after: Option<Duration>) -> Self {
        match status {
            401 => Self::Unauthorized,
            403 => Self::Forbidden(message),
            404 => Self::NotServed,
            410 => Self::Expired,
            429 => Self::Throttled { retry_after },
            400..500 => Self::Refused { status, message },
            _ => Self::Server { status, message, retry_after },
        }
    }
}

/// The path of a list's next page: `first` is that of its first page, with parameters, `next` what
/// the page before said.
pub(crate) fn page_path(mut first: String, next: Option<&str>) -> String {
    if let Some(next) = next {
        first += "&continue=";
        first.extend(escaped(next));
    }
    first
}

struct Current {
    generation: u64,
    client: Client,
    made: Instant,
    /// Why the credentials could not be read again, as it was last logged.
    logged: Option<String>,
}

/// The connection to the API server, shared by all that ask it.
pub struct Api {
    source: Source,
    user_agent: &'static str,
    current: Mutex<Current>,
}

/// A successful answer, whose body is still to be read.
pub(crate) struct Answer {
    body: Body,
    limit: Duration,
}

/// `meta/v1.Status`, as far as it is read.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct StatusObject {
    pub(crate) code: u16,
    pub(crate) message: String,
    pub(crate) details: Option<StatusDetails>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct StatusDetails {
    pub(crate) retry_after_seconds: u64,
}

impl StatusObject {
    pub(crate) fn failure(self) -> Failure {
        let wait = self.details.map_or(0, |d| d.retry_after_seconds);
        let wait = (wait > 0).then(|| Duration::from_secs(wait).min(MAX_RETRY_AFTER));
        Failure::of_status(self.code, self.message, wait)
    }
}

impl Api {
    /// Reads address and credentials. Nothing is sent yet: a server that is away does not keep the
    /// agent from starting. `user_agent` is the name and version that the server logs.
    ///
    /// # Errors
    /// If there is no configuration, or it makes no sense.
    pub async fn new(source: Source, user_agent: &'static str) -> Result<Self, ConnectError> {
        let client = source.client(user_agent).await?;
        Ok(Self {
            source,
            user_agent,
            current: Mutex::new(Current { generation: 0, client, made: Instant::now(), logged: None }),
        })
    }

    /// Reads the credentials again after the server refused those of `generation`, unless another
    /// request has done so since.
    async fn renew(&self, generation: u64) {
        let mut current = self.current.lock().await;
        if current.generation != generation || current.made.elapsed() < RENEWAL {
            return;
        }
        current.made = Instant::now();
        match self.source.client(self.user_agent).await {
            Ok(client) => {
                current.client = client;
                current.generation += 1;
                current.logged = None;
            }
            Err(e) => {
                let reason = e.to_string();
                if current.logged.as_ref() != Some(&reason) {
                    tracing::warn!("the credentials were refused and cannot be read again: {reason}");
                    current.logged = Some(reason);
                }
            }
        }
    }

    /// The client with the present credentials, for what is no plain request.
    pub(crate) async fn client(&self) -> Client {
        self.current.lock().await.client.clone()
    }

    async fn send(&self, request: Request<Body>, limit: Duration) -> Result<Answer, Failure> {
        let (generation, client) = {
            let current = self.current.lock().await;
            (current.generation, current.client.clone())
        };
        let answer = timeout(limit, client.send(request)).await.map_err(|_| Failure::Stalled)?;
        let answer = answer.map_err(|e| Failure::Transport(sentence(&e)))?;
        if answer.status().is_success() {
            return Ok(Answer { body: answer.into_body(), limit });
        }
        let failure = timeout(limit, refusal(answer)).await.map_err(|_| Failure::Stalled)?;
        if failure == Failure::Unauthorized {
            self.renew(generation).await;
        }
        Err(failure)
    }

    pub(crate) async fn get(&self, path_and_query: &str, accept: &str, limit: Duration) -> Result<Answer, Failure> {
        let request = Request::get(path_and_query).header(header::ACCEPT, accept).body(Body::empty());
        self.send(request.map_err(|e| Failure::Transport(e.to_string()))?, limit).await
    }

    /// Posts a JSON document and reads the answer.
    pub(crate) async fn post(&self, path: &str, json: Vec<u8>, limit: Duration) -> Result<Vec<u8>, Failure> {
        self.write(Method::POST, path, json, limit).await
    }

    /// Deletes an object with these options (JSON) and reads the answer.
    pub(crate) async fn delete(&self, path: &str, json: Vec<u8>, limit: Duration) -> Result<Vec<u8>, Failure> {
        self.write(Method::DELETE, path, json, limit).await
    }

    async fn write(&self, method: Method, path: &str, json: Vec<u8>, limit: Duration) -> Result<Vec<u8>, Failure> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::ACCEPT, "application/json")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(json));
        self.send(request.map_err(|e| Failure::Transport(e.to_string()))?, limit).await?.whole(limit).await
    }
}

impl Answer {
    /// The next piece of the body, `None` at its end.
    pub(crate) async fn piece(&mut self, stall: Duration) -> Result<Option<Bytes>, Failure> {
        loop {
            match timeout(stall, self.body.frame()).await {
                Err(_) => return Err(Failure::Stalled),
                Ok(None) => return Ok(None),
                Ok(Some(Err(e))) => return Err(Failure::Transport(sentence(&e))),
                // Trailers say nothing that is read.
                Ok(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    /// The whole body.
    pub(crate) async fn whole(mut self, limit: Duration) -> Result<Vec<u8>, Failure> {
        let read = async {
            let mut bytes = Vec::new();
            while let Some(piece) = self.piece(self.limit).await? {
                if bytes.len() + piece.len() > MAX_BODY {
                    return Err(Failure::TooLarge);
                }
                bytes.extend_from_slice(&piece);
            }
            Ok(bytes)
        };
        timeout(limit, read).await.unwrap_or(Err(Failure::Stalled))
    }
}

async fn refusal(answer: Response<Body>) -> Failure {
    let status = answer.status();
    let retry_after = retry_after(answer.headers());
    let mut body = answer.into_body();
    let mut bytes = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        if let Some(data) = frame.data_ref() {
            bytes.extend_from_slice(&data[..data.len().min(MAX_STATUS - bytes.len())]);
        }
        if bytes.len() >= MAX_STATUS {
            break;
        }
    }
    let message = match serde_json::from_slice::<StatusObject>(&bytes) {
        Ok(said) if !said.message.is_empty() => said.message,
        _ => String::from_utf8_lossy(&bytes).lines().next().unwrap_or_default().chars().take(200).collect(),
    };
    Failure::of_status(status.as_u16(), message, retry_after)
}

/// `Retry-After` in seconds; API servers send no dates.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_status_has_its_own_meaning_and_its_own_counter() {
        let of = |status| Failure::of_status(status, String::new(), None);
        let failures = [
            of(401),
            of(403),
            of(404),
            of(410),
            of(422),
            of(429),
            of(503),
            Failure::Transport(String::new()),
            Failure::Stalled,
            Failure::Cut,
            Failure::Malformed(String::new()),
            Failure::TooLarge,
        ];
        for (i, failure) in failures.iter().enumerate() {
            assert_eq!(failure.index(), i, "{failure}");
        }
        assert_eq!(failures.len(), Failure::REASONS.len());
    }

    #[test]
    fn retry_after_is_obeyed_within_reason() {
        let mut headers = HeaderMap::new();
        assert_eq!(retry_after(&headers), None);
        for (value, expected) in [("2", Some(2)), ("99999999", Some(300)), ("Wed, 21 Oct 2026 07:28:00 GMT", None)] {
            headers.insert(header::RETRY_AFTER, value.parse().unwrap());
            assert_eq!(retry_after(&headers), expected.map(Duration::from_secs), "{value}");
        }
    }
}
