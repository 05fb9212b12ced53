//! Serves the page on loopback.
//!
//! Three things keep others out. The listener is on 127.0.0.1. The address holds a token of 128
//! random bits, because every user of the machine reaches loopback. And the `Host` header must name
//! loopback, because a page of the web can make its own name mean 127.0.0.1 (DNS rebinding).
//! The page may ask its own server only (content security policy).

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore, time::timeout};

use crate::page;

/// Connections at once: one browser needs six.
const CONNECTIONS: usize = 32;
/// Until the head of a request is there.
const HEAD: Duration = Duration::from_secs(30);
/// How long one connection may last.
const LIFETIME: Duration = Duration::from_secs(300);

/// What a browser may load and do: everything from here and nothing from elsewhere.
const POLICY: &str =
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'";

/// The document that is shown.
#[derive(Debug)]
pub(super) struct Shown(Mutex<Bytes>);

impl Shown {
    pub(super) fn new(document: String) -> Self {
        Self(Mutex::new(document.into()))
    }

    /// Shows another one from now on.
    pub(super) fn replace(&self, document: String) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = document.into();
    }

    fn now(&self) -> Bytes {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A listener on loopback.
#[derive(Debug)]
pub(super) struct Server {
    listener: std::net::TcpListener,
    site: Site,
}

/// What is served, and to whom.
#[derive(Clone, Debug)]
struct Site {
    address: SocketAddr,
    token: String,
    shown: Arc<Shown>,
}

impl Server {
    /// Takes the port; 0: one that is free.
    pub(super) fn bind(port: u16, shown: Arc<Shown>) -> anyhow::Result<Self> {
        let wanted = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let listener =
            std::net::TcpListener::bind(wanted).with_context(|| format!("cannot listen on {wanted} (--port)"))?;
        listener.set_nonblocking(true).context("cannot listen")?;
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(|error| anyhow::anyhow!("no random numbers for the address: {error}"))?;
        let token = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let address = listener.local_addr().context("cannot listen")?;
        Ok(Self { listener, site: Site { address, token, shown } })
    }

    /// Where a browser finds the page.
    pub(super) fn address(&self) -> String {
        format!("http://{}/{}/", self.site.address, self.site.token)
    }

    /// Serves until somebody ends it.
    pub(super) fn run(self) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot serve")?;
        runtime.block_on(async {
            let listener = TcpListener::from_std(self.listener).context("cannot serve")?;
            tokio::select! {
                error = accept(&listener, &self.site) => Err(error).context("cannot accept connections"),
                ended = ended() => ended.context("cannot wait for signals"),
            }
        })
    }
}

/// Ctrl-C, or what `kill` and a closed terminal send.
async fn ended() -> io::Result<()> {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let (mut terminate, mut hangup) = (signal(SignalKind::terminate())?, signal(SignalKind::hangup())?);
        tokio::select! {
            ended = tokio::signal::ctrl_c() => ended,
            _ = terminate.recv() => Ok(()),
            _ = hangup.recv() => Ok(()),
        }
    }
    #[cfg(not(unix))]
    tokio::signal::ctrl_c().await
}

async fn accept(listener: &TcpListener, site: &Site) -> io::Error {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // Never closed.
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { continue };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // The caller is gone already, or the process has no descriptors left for a moment.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => return error,
        };
        let site = site.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let answer = answer(&site, &request);
                async { Ok::<_, std::convert::Infallible>(answer) }
            });
            let mut builder = http1::Builder::new();
            let connection = builder
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD)
                .serve_connection(TokioIo::new(stream), service);
            // A browser that leaves breaks its connections: nobody needs to hear of it.
            let _left = timeout(LIFETIME, connection).await;
            drop(permit);
        });
    }
}

fn answer(site: &Site, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    if !host.is_some_and(|host| is_loopback(host, site.address.port())) {
        return text(StatusCode::MISDIRECTED_REQUEST, "this page is served to 127.0.0.1 and localhost only\n");
    }
    if request.uri().path() == "/favicon.ico" {
        // Browsers ask for it unasked, at the root.
        return text(StatusCode::NO_CONTENT, "");
    }
    let path = request.uri().path().strip_prefix('/').unwrap_or_default();
    let Some(path) = path.strip_prefix(site.token.as_str()).and_then(|rest| rest.strip_prefix('/')) else {
        return text(StatusCode::NOT_FOUND, "open the whole address that guardrail ui printed\n");
    };
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
    }
    match path {
        "" => found("text/html; charset=utf-8", page::SERVED.into()),
        "page.js" => found("text/javascript; charset=utf-8", page::SCRIPT.into()),
        "page.css" => found("text/css; charset=utf-8", page::SHEET.into()),
        "document.json" => found("application/json", site.shown.now()),
        _ => text(StatusCode::NOT_FOUND, "there is nothing of that name\n"),
    }
}

/// Whether a `Host` header names loopback and this port.
fn is_loopback(host: &str, port: u16) -> bool {
    let Some((name, at)) = host.rsplit_once(':') else { return false };
    at.parse() == Ok(port) && (name == "127.0.0.1" || name.eq_ignore_ascii_case("localhost"))
}

fn text(status: StatusCode, message: &'static str) -> Response<Full<Bytes>> {
    let mut answer = found("text/plain; charset=utf-8", message.into());
    *answer.status_mut() = status;
    answer
}

fn found(kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(body));
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        // The token stands in the address.
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    for (name, value) in headers {
        answer.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    answer.headers_mut().insert("cross-origin-resource-policy", HeaderValue::from_static("same-origin"));
    answer.headers_mut().insert("cross-origin-opener-policy", HeaderValue::from_static("same-origin"));
    answer
}
