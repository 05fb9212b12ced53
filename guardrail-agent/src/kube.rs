//! `--inventory kube`: the cluster as its API server reports it, as a stream of [`Change`]s.
//!
//! One task per resource lists and watches. What arrives is trimmed at once by guardrail-graph's reader; the only thing kept here is, per object,
//! its resource version and a hash of the trimmed copy, so that what says nothing new never reaches the observer.
//!
//! - Order is the order of arrival. No time stamp of an object is read: the clocks of API server and node need not agree.
//! - Whatever goes wrong is counted, said once, and tried again with jittered backoff. What was known stays known meanwhile.
//! - A list that cannot be had (no permission, not served, no answer for a while) does not hold up readiness; `/readyz` says what is missing.

mod backoff;
mod client;
mod decode;
pub(crate) mod fuzzing;
mod known;
mod lines;
mod outage;
mod resource;
mod status;
mod watcher;

use std::{sync::Arc, time::Duration};

use guardrail_graph::inventory::Change;
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

pub use client::{Api, ConnectError, Failure, Source};
pub use resource::Resource;
pub use status::{ListState, Report, Status};

use crate::kube::watcher::Watcher;

/// Whose pods are watched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Scope {
    /// Every pod and everything that names it.
    #[default]
    Cluster,
    /// Only the pods of this node: for clusters of thousands of nodes. `guardrail merge` gives remote ends their names.
    Node,
}

/// How long things may take. The defaults suit a real API server; tests shorten them.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Until the head of an answer is there.
    pub answer: Duration,
    /// Until a page of a list is read whole.
    pub page: Duration,
    /// A stream on which nothing came for so long is dead. API servers send a bookmark about once a minute.
    pub stall: Duration,
    /// How long the server is asked to keep a watch open; up to half as much again is added, so that not all agents come back at once.
    pub watch: Duration,
    /// Shortest wait after a failure; it doubles with each further one.
    pub backoff: Duration,
    /// Longest wait after a failure.
    pub backoff_max: Duration,
    /// Wait after an answer that only a person can change (no permission, resource not served).
    pub denied: Duration,
    /// After so long without a first list, readiness does not wait for it any more.
    pub patience: Duration,
    /// For how long lists are read page by page, after a streaming list failed.
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
    /// This node's name, for [`Scope::Node`].
    pub node: String,
    /// Whose pods.
    pub scope: Scope,
    /// Objects per page of a list.
    pub page: u32,
    /// Time limits.
    pub timing: Timing,
}

impl Options {
    /// The defaults for an agent on `node`.
    #[must_use]
    pub fn new(node: impl Into<String>) -> Self {
        Self { node: node.into(), scope: Scope::default(), page: 250, timing: Timing::default() }
    }
}

/// Watches until `stop` is cancelled or nobody takes the changes any more. `status` shows how it goes.
pub async fn follow(
    api: Arc<Api>,
    options: Options,
    changes: mpsc::Sender<Vec<Change>>,
    status: Arc<Status>,
    stop: CancellationToken,
) {
    let mut watchers = JoinSet::new();
    for resource in Resource::ALL {
        let watcher = Watcher::new(resource, &options, Arc::clone(&api), changes.clone(), Arc::clone(&status));
        watchers.spawn(watcher.run());
    }
    drop(changes);
    // A watcher only ends when nobody listens; any other end is a bug, and the caller must notice.
    let ended = stop.run_until_cancelled(watchers.join_next()).await;
    if let Some(Some(Err(panicked))) = ended {
        tracing::error!("a watch of the API server broke: {panicked}");
    }
}
