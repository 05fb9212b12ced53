//! The Kubernetes client side: what agent and command ask of an API server.
//!
//! - [`client`]: the connection, its credentials, and what each refusal means.
//! - [`watch`]: lists and watches of the objects that name pods, as a stream of
//!   [`guardrail_graph::inventory::Change`]s.
//! - [`review`]: who the bearer of a token is, and whether that user may read a URL.
//! - [`agents`] and [`forward`]: the agents of a cluster, and the snapshot of each through a
//!   port-forward.
//! - [`objects`]: what a cluster has at this moment, as text.
//! - [`exceptions`]: policies with a label, and their end: the only thing here that writes.
//!
//! No policy is read here: NetworkPolicies go to a reader that the caller gives. No name is decided
//! here: that is the observer's (guardrail-graph).

#![forbid(unsafe_code)]

pub mod agents;
pub mod client;
pub mod exceptions;
pub mod forward;
#[doc(hidden)]
pub mod fuzzing;
pub mod objects;
pub mod quiet;
pub mod resource;
pub mod review;
pub mod text;
pub mod watch;

pub use client::{Api, ConnectError, Failure, Source};
pub use resource::Resource;
