//! Doors for the checks of hostile input (`fuzz/`): each takes raw bytes to a reader that is
//! private otherwise, and gives plain values. No part of the agent uses it, and it is no API.

use std::net::Ipv4Addr;

use axum::{Router, http::HeaderMap};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use crate::{
    auth,
    serve::{self, Limits},
};

/// The bearer token of a request.
#[must_use]
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    auth::bearer(headers)
}

/// Speaks HTTP with one peer, as [`serve::serve`] does on each connection, until it ends.
pub async fn exchange(stream: impl AsyncRead + AsyncWrite + Unpin + 'static, router: Router, limits: Limits) {
    let peer = serve::Peer::new(Ipv4Addr::LOCALHOST.into());
    serve::http(stream, peer, router, limits, CancellationToken::new()).await;
}
