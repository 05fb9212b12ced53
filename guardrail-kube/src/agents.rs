//! The agents' pods of a namespace, and whether each is there to answer.
//!
//! The user needs the verb `list` on pods in that namespace.

use std::time::Duration;

use serde::Deserialize;
use tokio::time::timeout;

use crate::{
    Api, Failure,
    client::page_path,
    text::{escaped, plain},
    watch::decode,
};

/// The label of deploy/base/daemonset.yaml.
pub const LABEL: &str = "app.kubernetes.io/name=guardrail-agent";
/// Pods per page of the list. With all that controllers write into them they have some 10 KiB each.
const PAGE: usize = 500;

/// Why there is no list of agents; for the user of a kubeconfig.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// The user may not list pods.
    #[error("no permission to find the agents: grant the verb list on pods in the namespace {namespace} ({said})")]
    Forbidden {
        /// The namespace.
        namespace: String,
        /// What the API server says.
        said: String,
    },
    /// The server does not accept the credentials.
    #[error("the API server does not accept the credentials of the kubeconfig, or of the pod's service account")]
    Unauthorized,
    /// No connection, or it broke.
    #[error("cannot reach the API server: {0}")]
    Unreachable(String),
    /// No whole answer in time.
    #[error("the API server did not answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// The answer is no list.
    #[error("the API server sent something that is no list of pods: {0}")]
    Malformed(String),
    /// Another refusal.
    #[error("the API server does not list the pods of the namespace {namespace}: {said}")]
    Refused {
        /// The namespace.
        namespace: String,
        /// What went wrong.
        said: String,
    },
}

impl ListError {
    fn new(failure: Failure, namespace: &str, limit: Duration) -> Self {
        let namespace = namespace.to_owned();
        match failure {
            Failure::Forbidden(said) => Self::Forbidden { namespace, said: plain(&said) },
            Failure::Unauthorized => Self::Unauthorized,
            Failure::Transport(why) => Self::Unreachable(why),
            Failure::Stalled => Self::TimedOut(limit),
            Failure::Malformed(why) => Self::Malformed(plain(&why)),
            other => Self::Refused { namespace, said: plain(&other.to_string()) },
        }
    }
}

/// An agent's pod.
#[derive(Debug, PartialEq, Eq)]
pub struct Agent {
    /// `metadata.name`.
    pub pod: String,
    /// The node that it runs on or is meant for.
    pub node: String,
    /// Whether it can be asked.
    pub state: AgentState,
}

/// Whether an agent can be asked.
#[derive(Debug, PartialEq, Eq)]
pub enum AgentState {
    /// Its pod is ready.
    Ready,
    /// It is not, for this reason.
    Absent(String),
}

/// core/v1 Pod, as far as it is read.
#[derive(Deserialize)]
struct Pod {
    metadata: Meta,
    #[serde(default)]
    spec: PodSpec,
    #[serde(default)]
    status: PodStatus,
}

#[derive(Deserialize)]
struct Meta {
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodSpec {
    node_name: String,
    affinity: serde_json::Value,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodStatus {
    phase: String,
    conditions: Vec<Condition>,
    container_statuses: Vec<ContainerStatus>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Condition {
    r#type: String,
    status: String,
    message: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ContainerStatus {
    state: serde_json::Value,
}

impl Pod {
    fn agent(self) -> Agent {
        let state = self.state();
        let node = match self.spec.node_name.as_str() {
            "" => self.meant_for().map_or_else(|| format!("of pod {}", self.metadata.name), str::to_owned),
            node => node.to_owned(),
        };
        Agent { pod: self.metadata.name, node, state }
    }

    /// The DaemonSet controller binds each pod to its node by the node's name, before the scheduler
    /// has looked at it.
    fn meant_for(&self) -> Option<&str> {
        let terms =
            &self.spec.affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"];
        let fields = terms.as_array()?.iter().filter_map(|term| term["matchFields"].as_array()).flatten();
        fields.filter(|f| f["key"] == "metadata.name").find_map(|f| f["values"][0].as_str())
    }

    fn state(&self) -> AgentState {
        let PodStatus { phase, conditions, container_statuses } = &self.status;
        let condition = |name: &str| conditions.iter().find(|c| c.r#type == name);
        if phase == "Running" && condition("Ready").is_some_and(|c| c.status == "True") {
            return AgentState::Ready;
        }
        let waiting = container_statuses.iter().find_map(|c| c.state["waiting"]["reason"].as_str());
        let unscheduled = condition("PodScheduled").filter(|c| c.status == "False").map(|c| c.message.as_str());
        let why = waiting.or(unscheduled).filter(|why| !why.is_empty()).map(|why| format!(", {}", plain(why)));
        let phase = if phase == "Running" { "not ready" } else { phase };
        AgentState::Absent(format!("its pod is {}{}", plain(phase), why.unwrap_or_default()))
    }
}

/// Lists the agents' pods, whatever their phase, within `limit`.
///
/// # Errors
/// No server, no permission, or an answer that is no list; the message is for the user.
pub async fn list(api: &Api, namespace: &str, limit: Duration) -> Result<Vec<Agent>, ListError> {
    let listed = timeout(limit, pages(api, namespace, limit)).await.unwrap_or(Err(Failure::Stalled));
    listed.map_err(|failure| ListError::new(failure, namespace, limit))
}

async fn pages(api: &Api, namespace: &str, limit: Duration) -> Result<Vec<Agent>, Failure> {
    let mut agents = Vec::new();
    let mut next: Option<String> = None;
    loop {
        let mut path = format!("/api/v1/namespaces/{namespace}/pods?limit={PAGE}&labelSelector=");
        path.extend(escaped(LABEL));
        let path = page_path(path, next.as_deref());
        let bytes = api.get(&path, "application/json", limit).await?.whole(limit).await?;
        let page = decode::page(&bytes)?;
        for item in page.items {
            let pod: Pod = serde_json::from_str(item.get()).map_err(|e| Failure::Malformed(e.to_string()))?;
            agents.push(pod.agent());
        }
        next = page.next;
        if next.is_none() {
            return Ok(agents);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn agent(pod: Value) -> Agent {
        serde_json::from_value::<Pod>(pod).unwrap().agent()
    }

    #[test]
    fn each_pod_is_an_agent_with_its_node_and_what_keeps_it_from_answering() {
        let pod =
            |spec: Value, status: Value| agent(json!({"metadata": {"name": "p"}, "spec": spec, "status": status}));
        let ready = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
        assert_eq!(
            pod(json!({"nodeName": "a"}), ready),
            Agent { pod: "p".to_owned(), node: "a".to_owned(), state: AgentState::Ready }
        );
        let absent = |status: Value| match pod(json!({"nodeName": "a"}), status).state {
            AgentState::Absent(why) => why,
            AgentState::Ready => panic!("ready"),
        };
        assert_eq!(
            absent(json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}]})),
            "its pod is not ready"
        );
        assert_eq!(
            absent(
                json!({"phase": "Pending", "containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff"}}}]})
            ),
            "its pod is Pending, ImagePullBackOff"
        );
        assert_eq!(absent(json!({"phase": "Failed"})), "its pod is Failed");

        // As the DaemonSet controller writes it.
        let affinity = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
            {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["b"]}]}]}}});
        let status = json!({"phase": "Pending", "conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/2 nodes are available: Insufficient memory."}]});
        let pending = pod(json!({"affinity": affinity}), status.clone());
        assert_eq!(pending.node, "b");
        assert_eq!(
            pending.state,
            AgentState::Absent("its pod is Pending, 0/2 nodes are available: Insufficient memory.".to_owned())
        );
        assert_eq!(pod(json!({}), status).node, "of pod p", "nobody's node makes the window incomplete all the same");
    }
}
