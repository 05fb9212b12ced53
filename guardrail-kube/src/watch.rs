//! The cluster as its API server reports it, as a stream of [`Change`]s.
//!
//! One task for each resource lists and watches. guardrail-graph's reader trims each object when it
//! arrives. This module keeps, for each object, its resource version and a hash of the trimmed
//! copy, so that an event without news never reaches the observer.
//!
//! - The order is the order of arrival. No time stamp of an object is read: the clocks of API
//!   server and node need not agree.
//! - Each failure is counted, logged within bounds, and tried again with jittered backoff. What was
//!   known stays known meanwhile.
//! - Readiness does not wait for a list that cannot be had (no permission, not served, no answer
//!   for a while); [`Status`] says which are missing.

mod backoff;
pub(crate) mod decode;
mod known;
pub(crate) mod lines;
mod outage;
mod policies;
mod status;
pub(crate) mod watcher;

use std::{fmt::Debug, sync::Arc, time::Duration};

use guardrail_graph::inventory::Change;
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

pub use policies::{Policies, ReadPolicy};
pub use status::{ListState, Report, Status};

use crate::{Api, Resource};
use watcher::Watcher;

/// How long things may take. The defaults suit a real API server; tests shorten them.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Longest wait for the head of an answer.
    pub answer: Duration,
    /// Longest time to read a whole page of a list.
    pub page: Duration,
    /// Longest silence of a stream before it counts as dead. API servers send a bookmark about once
    /// a minute.
    pub stall: Duration,
    /// Time for which the server keeps a watch open. Up to half of it is added at random, so that
    /// not all agents reconnect at once.
    pub watch: Duration,
    /// Shortest wait after a failure; it doubles with each further one.
    pub backoff: Duration,
    /// Longest wait after a failure.
    pub backoff_max: Duration,
    /// Wait after a refusal that only a person can lift (no permission, resource not served).
    pub denied: Duration,
    /// Time without a first list after which readiness does not wait for it.
    pub patience: Duration,
    /// Time for which lists are read page by page after a streaming list failed.
    pub paged: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            answer: Duration::from_secs(30),
            page: Duration::from_secs(60),
            stall: Duration::from_secs(150),
            watch: Duration::from_secs(290),
            backoff: Duration::from_millis(500),
            backoff_max: Duration::from_secs(30),
            denied: Duration::from_secs(60),
            patience: Duration::from_secs(120),
            paged: Duration::from_secs(3600),
        }
    }
}

/// What is watched, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// Watch only the pods of this node. For clusters of thousands of nodes; `guardrail merge` then
    /// gives remote ends their names.
    pub pods_of_node: Option<String>,
    /// Objects per page of a list.
    pub page: u32,
    /// Time limits.
    pub timing: Timing,
}

impl Default for Options {
    fn default() -> Self {
        Self { pods_of_node: None, page: 250, timing: Timing::default() }
    }
}

/// Watches until `stop` is cancelled or nobody takes the changes any more. `status` shows how it
/// goes, `policies` takes the NetworkPolicies.
pub async fn follow<P: Clone + Debug + Send + 'static>(
    api: Arc<Api>,
    options: Options,
    changes: mpsc::Sender<Vec<Change>>,
    status: Arc<Status>,
    policies: Arc<Policies<P>>,
    stop: CancellationToken,
) {
    let mut watchers = JoinSet::new();
    for resource in Resource::ALL {
        let (api, changes) = (Arc::clone(&api), changes.clone());
        let (status, policies) = (Arc::clone(&status), Arc::clone(&policies));
        watchers.spawn(Watcher::new(resource, &options, api, changes, status, policies).run());
    }
    drop(changes);
    // A watcher ends only when nobody receives its changes. Any other end is a bug, and the caller
    // must notice it.
    let ended = stop.run_until_cancelled(watchers.join_next()).await;
    if let Some(Some(Err(panicked))) = ended {
        tracing::error!("a watch of the API server broke: {panicked}");
    }
}
