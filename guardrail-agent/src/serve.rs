//! Accepts connections for a router, within bounds: so many at once, heads of so many bytes, each step within its time.

use std::{io, sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::auth::tls::Tls;

/// Limits of one listener.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once; more wait in the kernel's backlog.
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

/// Serves until `stop` is cancelled, then gives open answers a second.
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
    let permits = Arc::new(Semaphore::new(limits.connections));
    let mut connections = JoinSet::new();
    loop {
        let accepted = async {
            let permit = Arc::clone(&permits).acquire_owned().await;
            (permit, listener.accept().await)
        };
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => {}
            (permit, accepted) = accepted => {
                let stream = match accepted {
                    Ok((stream, _)) => stream,
                    Err(e) => {
                        // Out of file descriptors, or a peer that was gone at once: neither ends the agent.
                        tracing::debug!("a connection was not accepted: {e}");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                };
                let (tls, router, stop) = (tls.clone(), router.clone(), stop.clone());
                connections.spawn(async move {
                    let _permit = permit;
                    let _ = timeout(limits.lifetime, connection(stream, tls, router, limits, stop)).await;
                });
            }
        }
    }
    let _ = timeout(Duration::from_secs(1), async { while connections.join_next().await.is_some() {} }).await;
    Ok(())
}

async fn connection(stream: TcpStream, tls: Option<Arc<Tls>>, router: Router, limits: Limits, stop: CancellationToken) {
    let _ = stream.set_nodelay(true);
    match tls {
        None => http(stream, router, limits, stop).await,
        Some(tls) => {
            let handshake = tls.acceptor().accept(stream);
            if let Ok(Ok(stream)) = timeout(limits.handshake, handshake).await {
                http(stream, router, limits, stop).await;
            }
        }
    }
}

async fn http<S: AsyncRead + AsyncWrite + Unpin + 'static>(
    stream: S,
    router: Router,
    limits: Limits,
    stop: CancellationToken,
) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(limits.head_bytes)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
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
