//! Accepts connections for a router, within bounds: so many at once, heads of so many bytes, each
//! step within its time.
//!
//! A listener is reached by anyone in the cluster, and the kubelet's probes share it. So when all
//! connections are taken, a new one takes the place of one that waits, and of those first of the
//! caller that holds the most: nobody keeps the others out by holding connections open.

pub mod thread;

use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes, HttpBody},
};
use hyper::{
    body::{Frame, Incoming, SizeHint},
    server::conn::http1,
    service::{Service as _, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::auth::tls::Tls;

/// Limits of one listener.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once; one more takes the place of another, see [`serve`].
    pub connections: usize,
    /// Until the TLS handshake is done.
    pub handshake: Duration,
    /// Until the head of a request is there; also how long an idle connection is kept.
    pub head: Duration,
    /// How long one connection may last, so that a slow reader does not hold its answer for ever.
    pub lifetime: Duration,
    /// Bytes of a request's head.
    pub head_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 64,
            handshake: Duration::from_secs(5),
            head: Duration::from_secs(10),
            lifetime: Duration::from_secs(120),
            head_bytes: 16 << 10,
        }
    }
}

/// Who sent a request, among its extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller(pub IpAddr);

/// One peer of a listener.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    address: IpAddr,
    /// Requests whose answer was not handed to the connection whole.
    answering: Arc<AtomicUsize>,
}

impl Peer {
    pub(crate) fn new(address: IpAddr) -> Self {
        Self { address: address.to_canonical(), answering: Arc::default() }
    }
}

/// A connection that is open.
#[derive(Debug)]
struct Open {
    /// Connections are numbered as they come.
    number: u64,
    peer: Peer,
    task: AbortHandle,
}

/// The connections of a listener.
#[derive(Debug, Default)]
struct Connections {
    open: HashMap<tokio::task::Id, Open>,
    tasks: JoinSet<()>,
    accepted: u64,
}

impl Connections {
    /// Makes room for one more from `newcomer`, if there are `limit` already: the oldest that waits
    /// for a request, of the caller that holds the most connections; if all of these are being
    /// answered, the oldest of them, provided that its caller still holds more than the newcomer.
    fn make_room(&mut self, newcomer: IpAddr, limit: usize) -> bool {
        if self.open.len() < limit {
            return true;
        }
        let mut held: HashMap<IpAddr, usize> = HashMap::new();
        for open in self.open.values() {
            *held.entry(open.peer.address).or_default() += 1;
        }
        let most = held.values().copied().max().unwrap_or(0);
        let by_newcomer = held.get(&newcomer).copied().unwrap_or(0);
        let victim = self
            .open
            .values()
            .filter(|open| held[&open.peer.address] == most)
            .map(|open| (open.peer.answering.load(Ordering::Relaxed) > 0, open.number, open.task.id()))
            .min_by_key(|(answering, number, _)| (*answering, *number))
            .filter(|(answering, ..)| !answering || most > by_newcomer + 1);
        let Some((.., id)) = victim else { return false };
        if let Some(open) = self.open.remove(&id) {
            tracing::debug!(peer = %open.peer.address, "a connection made room for another");
            open.task.abort();
        }
        true
    }

    fn start(&mut self, peer: Peer, connection: impl Future<Output = ()> + Send + 'static) {
        let task = self.tasks.spawn(connection);
        self.accepted += 1;
        self.open.insert(task.id(), Open { number: self.accepted, peer, task });
    }

    /// Waits for one to end; for ever if there is none.
    async fn ended(&mut self) {
        let id = match self.tasks.join_next_with_id().await {
            Some(Ok((id, ()))) => id,
            Some(Err(e)) => e.id(),
            None => std::future::pending().await,
        };
        self.open.remove(&id);
    }
}

/// Serves until `stop` is cancelled, then gives open answers a second. When every connection is
/// taken, the next one takes the place of the oldest that waits for a request, of the caller that
/// holds the most.
///
/// # Errors
/// Never for a single connection's sake; only if the listener itself fails for good.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    router: Router,
    limits: Limits,
    stop: CancellationToken,
) -> io::Result<()> {
    let mut connections = Connections::default();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = connections.ended() => {}
            accepted = listener.accept() => {
                let (stream, peer) = match accepted {
                    Ok((stream, address)) => (stream, Peer::new(address.ip())),
                    Err(e) => {
                        // Out of file descriptors, or a peer that was gone at once: neither ends
                        // the agent.
                        tracing::debug!("a connection was not accepted: {e}");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                };
                if !connections.make_room(peer.address, limits.connections) {
                    tracing::debug!(peer = %peer.address, "all connections are being answered: one more was closed");
                    continue;
                }
                let (tls, router, stop) = (tls.clone(), router.clone(), stop.clone());
                connections.start(peer.clone(), async move {
                    let _ = timeout(limits.lifetime, connection(stream, peer, tls, router, limits, stop)).await;
                });
            }
        }
    }
    let mut tasks = connections.tasks;
    let _ = timeout(Duration::from_secs(1), async { while tasks.join_next().await.is_some() {} }).await;
    Ok(())
}

async fn connection(
    stream: TcpStream,
    peer: Peer,
    tls: Option<Arc<Tls>>,
    router: Router,
    limits: Limits,
    stop: CancellationToken,
) {
    let _ = stream.set_nodelay(true);
    match tls {
        None => http(stream, peer, router, limits, stop).await,
        Some(tls) => {
            let handshake = tls.acceptor().accept(stream);
            if let Ok(Ok(stream)) = timeout(limits.handshake, handshake).await {
                http(stream, peer, router, limits, stop).await;
            }
        }
    }
}

/// Counts a request as being answered until it is dropped.
struct Answering(Arc<AtomicUsize>);

impl Answering {
    fn begin(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The body of an answer: until the connection has taken all of it, the request counts as being
/// answered.
struct Answer {
    body: Body,
    _answering: Answering,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

pub(crate) async fn http<S: AsyncRead + AsyncWrite + Unpin + 'static>(
    stream: S,
    peer: Peer,
    router: Router,
    limits: Limits,
    stop: CancellationToken,
) {
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        let answering = Answering::begin(&peer.answering);
        request.extensions_mut().insert(Caller(peer.address));
        let answer = router.call(request);
        async move { answer.await.map(|answer| answer.map(|body| Answer { body, _answering: answering })) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(limits.head_bytes)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        // What a client does wrong is its own affair.
        _ = connection.as_mut() => {}
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}
