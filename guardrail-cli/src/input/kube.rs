//! `kube[:NAMESPACE]`: the snapshots of all agents of a cluster, without another server.
//!
//! In: a namespace and the user's own kubeconfig. Out: the snapshots of each agent that answered,
//! and one that says which nodes should have an agent, so that a node without an answer makes the
//! window incomplete. guardrail-kube finds the agents and asks them; what the user needs to be
//! permitted stands there.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use guardrail_graph::{Snapshot, Timestamp};
use guardrail_kube::{
    Api, ConnectError, Source,
    agents::{self, Agent, AgentState},
    forward::{self, Miss},
    objects::{self, ClusterText},
    text::sentence,
};
use guardrail_policy::read::is_read;
use tokio::{sync::Semaphore, task::JoinSet};

use super::{clock, tell};

/// The namespace of deploy/base.
const DEFAULT_NAMESPACE: &str = "guardrail";
/// Where Cilium keeps its settings.
const CILIUM_CONFIG: &str = "/api/v1/namespaces/kube-system/configmaps/cilium-config";
/// Agents that are asked at the same time: bounds memory here and port-forwards at the API server.
const AT_ONCE: usize = 8;
/// As the API server logs it.
const USER_AGENT: &str = concat!("guardrail/", env!("CARGO_PKG_VERSION"));

/// How to reach the cluster that `kube` means.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Options for kube, a cluster")]
pub(crate) struct KubeArgs {
    /// Kubeconfig file; without it KUBECONFIG, ~/.kube/config, or the pod's service account
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,

    /// Context of the kubeconfig; without it the current one
    #[arg(long, value_name = "NAME")]
    context: Option<String>,

    /// `kube` is the cluster of the pod that this runs in, by its service account; the plan's
    /// context does not count
    #[arg(long, conflicts_with_all = ["kubeconfig", "context"])]
    in_cluster: bool,

    /// How long the API server, and then each agent, may take to answer
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = seconds)]
    agent_timeout: u64,

    /// The time that counts as now: RFC 3339
    #[arg(long, value_name = "TIME", hide = true)]
    now: Option<Timestamp>,
}

fn seconds(text: &str) -> Result<u64, &'static str> {
    let seconds = text.parse().ok().filter(|seconds| (1..=3600).contains(seconds));
    seconds.ok_or("write a whole number of seconds from 1 to 3600")
}

impl KubeArgs {
    /// The time that counts as now.
    pub(crate) fn now(&self) -> Timestamp {
        self.now.unwrap_or_else(clock)
    }

    /// The context that was named.
    pub(crate) fn context(&self) -> Option<&str> {
        self.context.as_deref()
    }

    /// Names the context, which only a kubeconfig has.
    pub(crate) fn set_context(&mut self, context: &str) {
        if !self.in_cluster {
            self.context = Some(context.to_owned());
        }
    }
}

/// Whether a path of `--policies` or `--inventory` means the cluster. A file of that name is
/// `./kube`.
pub(super) fn is_cluster(path: &Path) -> bool {
    path.as_os_str() == "kube"
}

/// What of the cluster is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Everything that says who may connect.
    Policies,
    /// That, and everything that names pods and what they belong to.
    Everything,
}

/// What the cluster has at this moment: policies, and the other objects.
///
/// # Errors
/// No kubeconfig, no API server, no permission.
pub(super) fn objects(wanted: Wanted, args: &KubeArgs) -> anyhow::Result<[Vec<ClusterText>; 2]> {
    let limit = Duration::from_secs(args.agent_timeout);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    runtime.block_on(async {
        let api = connect(args).await?;
        let mut policies = objects::policies(&api, is_read, limit).await?;
        if wanted == Wanted::Policies {
            return Ok([policies, Vec::new()]);
        }
        // Cilium's own settings say how it reads policies.
        if policies.iter().any(|text| text.what.ends_with(".cilium.io")) {
            policies.extend(objects::object(&api, CILIUM_CONFIG, limit).await?);
        }
        Ok([policies, objects::inventory(&api, limit).await?])
    })
}

/// The namespace that a SNAPSHOT argument of the form `kube[:NAMESPACE]` names; `None` if it is
/// something else.
///
/// # Errors
/// If what stands behind the colon is no name of a namespace.
pub(super) fn namespace(name: &str) -> anyhow::Result<Option<&str>> {
    let namespace = match name.strip_prefix("kube") {
        Some("") => return Ok(Some(DEFAULT_NAMESPACE)),
        Some(rest) => match rest.strip_prefix(':') {
            Some(namespace) => namespace,
            None => return Ok(None),
        },
        None => return Ok(None),
    };
    // RFC 1123 label, as the API server checks it.
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = namespace.as_bytes();
    let valid = bytes.len() <= 63
        && bytes.iter().all(|b| inner(*b) || *b == b'-')
        && [bytes.first(), bytes.last()].into_iter().all(|end| end.is_some_and(|b| inner(*b)));
    if !valid {
        bail!("`{name}`: `{namespace}` is no name of a namespace; write kube:NAMESPACE");
    }
    Ok(Some(namespace))
}

/// What all agents of the namespace answer. Says on stderr which nodes did not, and why.
///
/// # Errors
/// No kubeconfig, no API server, no permission, no agent, no agent that answers, or one in whose
/// answer times run backwards.
pub(super) fn snapshots(namespace: &str, args: &KubeArgs) -> anyhow::Result<Vec<Snapshot>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    runtime.block_on(async {
        let api = Arc::new(connect(args).await?);
        let limit = Duration::from_secs(args.agent_timeout);
        let agents = agents::list(&api, namespace, limit).await?;
        if agents.is_empty() {
            bail!(
                "no agent in the namespace {namespace}: no pod there has the label {}; name another with kube:NAMESPACE",
                agents::LABEL
            );
        }
        ask(&api, namespace, agents, limit).await
    })
}

/// Runs what asks the API server; it is given the time that each answer may take.
///
/// # Errors
/// No kubeconfig, or those of `ask`.
pub(crate) fn with_api<T>(
    args: &KubeArgs,
    ask: impl AsyncFnOnce(&Api, Duration) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    runtime.block_on(async { ask(&connect(args).await?, Duration::from_secs(args.agent_timeout)).await })
}

async fn connect(args: &KubeArgs) -> anyhow::Result<Api> {
    let KubeArgs { kubeconfig, context, in_cluster, .. } = args;
    let source = Source { in_cluster: *in_cluster, kubeconfig: kubeconfig.clone(), context: context.clone() };
    Api::new(source, USER_AGENT).await.map_err(|error| {
        let reason = match &error {
            ConnectError::Client(e) => {
                let what = if *in_cluster { "service account" } else { "kubeconfig" };
                return anyhow::anyhow!("cannot use the {what}: {}", sentence(e));
            }
            ConnectError::NotFound(e) => sentence(e),
            ConnectError::NoPod(e) => {
                return anyhow::anyhow!(
                    "--in-cluster is for pods with a service account, and there is none here: {}",
                    sentence(e)
                );
            }
            ConnectError::Context(e) | ConnectError::Kubeconfig { source: e, .. } => sentence(e),
        };
        anyhow::anyhow!("{reason}").context("no cluster to ask: set KUBECONFIG or give --kubeconfig")
    })
}

/// Asks every agent that is there to answer.
async fn ask(api: &Arc<Api>, namespace: &str, agents: Vec<Agent>, limit: Duration) -> anyhow::Result<Vec<Snapshot>> {
    let permits = Arc::new(Semaphore::new(AT_ONCE));
    let mut asked = JoinSet::new();
    let mut nodes = Nodes::default();
    for agent in agents {
        nodes.expected.insert(agent.node.clone());
        match agent.state {
            AgentState::Absent(reason) => nodes.missed(&agent.node, &agent.pod, Miss::Because(reason)),
            AgentState::Ready => {
                let (api, namespace, permits) = (Arc::clone(api), namespace.to_owned(), Arc::clone(&permits));
                asked.spawn(async move {
                    let _permit = permits.acquire_owned().await;
                    let answer = forward::snapshots(&api, &namespace, &agent.pod, limit).await;
                    (agent, answer)
                });
            }
        }
    }
    let mut snapshots = Vec::new();
    while let Some(done) = asked.join_next().await {
        let (agent, answer) = done.context("asking an agent broke")?;
        match answer {
            Ok(answer) => {
                let mut times = answer.iter().map(Snapshot::check_times);
                times
                    .try_for_each(|checked| checked.with_context(|| format!("node {} ({})", agent.node, agent.pod)))?;
                nodes.answered.insert(agent.node);
                snapshots.extend(answer);
            }
            Err(miss) => nodes.missed(&agent.node, &agent.pod, miss),
        }
    }
    nodes.tell(namespace, snapshots.is_empty())?;
    snapshots.push(nodes.expectation());
    Ok(snapshots)
}

/// Which nodes have an agent, and which of those answered.
#[derive(Default)]
struct Nodes {
    expected: BTreeSet<String>,
    answered: BTreeSet<String>,
    /// Node → pod → why it did not answer.
    missed: BTreeMap<String, BTreeMap<String, Miss>>,
}

impl Nodes {
    fn missed(&mut self, node: &str, pod: &str, miss: Miss) {
        self.missed.entry(node.to_owned()).or_default().insert(pod.to_owned(), miss);
    }

    /// Says which nodes did not answer. A pod that was replaced on its node misses nothing.
    ///
    /// # Errors
    /// If nobody answered.
    fn tell(&self, namespace: &str, nobody: bool) -> anyhow::Result<()> {
        let missed = || self.missed.iter().filter(|(node, _)| !self.answered.contains(*node));
        let refused = missed().flat_map(|(_, pods)| pods.values()).find_map(|miss| match miss {
            Miss::Forbidden(said) => Some(said),
            Miss::Because(_) => None,
        });
        if let Some(said) = refused.filter(|_| nobody) {
            bail!(
                "no permission to ask the agents: grant the verbs get and create on pods/portforward in the namespace {namespace} ({said})"
            );
        }
        for (node, pods) in missed() {
            let reasons: Vec<String> = pods.iter().map(|(pod, miss)| format!("{miss} ({pod})")).collect();
            tell("warning", &format!("node {node} did not answer: {}", reasons.join("; ")));
        }
        if nobody {
            bail!("none of the {} agents in the namespace {namespace} answered", self.expected.len());
        }
        Ok(())
    }

    /// A snapshot of nothing but the nodes that should have been observed.
    fn expectation(self) -> Snapshot {
        let mut snapshot = Snapshot::empty();
        snapshot.body.coverage.nodes.expected = self.expected;
        snapshot
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_kube_and_kube_with_a_namespace_name_a_cluster() {
        let of = |name| namespace(name).map_err(|e| e.to_string());
        assert_eq!(of("kube"), Ok(Some("guardrail")));
        assert_eq!(of("kube:obs-1"), Ok(Some("obs-1")));
        for file in ["kube.json", "./kube", "kubes", "-", "http://kube/v1/graph"] {
            assert_eq!(of(file), Ok(None), "{file}");
        }
        for bad in ["kube:", "kube:-a", "kube:a-", "kube:A", "kube:a/b", "kube:../x", "kube:a?b"] {
            assert!(of(bad).unwrap_err().contains("no name of a namespace"), "{bad}");
        }
    }

    #[test]
    fn a_node_without_an_answer_is_expected_and_not_observed() {
        let mut nodes = Nodes::default();
        nodes.expected.extend(["a".to_owned(), "b".to_owned()]);
        nodes.answered.insert("a".to_owned());
        let merged = guardrail_graph::snapshot::merge(vec![nodes.expectation()]);
        assert!(!merged.body.coverage.complete);
        assert_eq!(merged.body.coverage.nodes.expected.len(), 2);
    }
}
