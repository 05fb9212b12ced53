//! The agent pods of a namespace, and whether each is there to answer.

use http_body_util::{BodyExt as _, Limited};
use hyper::{Request, StatusCode};
use kube::{Client, client::Body};
use serde::Deserialize;

use super::{plain, sentence};

/// The label of deploy/base/daemonset.yaml.
pub(super) const LABEL: &str = "app.kubernetes.io/name=guardrail-agent";
/// Pods per page of the list.
const PAGE: usize = 500;
/// The largest page that is read: pods with all that controllers write into them have some 10 KiB.
const MAX_PAGE_BYTES: usize = 64 << 20;

/// An agent's pod.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Agent {
    /// `metadata.name`.
    pub(super) pod: String,
    /// The node that it runs on or is meant for.
    pub(super) node: String,
    /// Whether it can be asked.
    pub(super) state: State,
}

/// Whether an agent can be asked.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Its pod is ready.
    Ready,
    /// It is not, for this reason.
    Absent(String),
}

#[derive(Deserialize)]
struct List {
    #[serde(default)]
    metadata: ListMeta,
    #[serde(default)]
    items: Vec<Pod>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ListMeta {
    r#continue: String,
}

/// core/v1 Pod, as far as it is read.
#[derive(Deserialize)]
struct Pod {
    metadata: Meta,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Deserialize)]
struct Meta {
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    node_name: String,
    affinity: serde_json::Value,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Status {
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

    /// The DaemonSet controller binds each pod to its node by the node's name, before the scheduler has looked at it.
    fn meant_for(&self) -> Option<&str> {
        let terms =
            &self.spec.affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"];
        let fields = terms.as_array()?.iter().filter_map(|term| term["matchFields"].as_array()).flatten();
        fields.filter(|f| f["key"] == "metadata.name").find_map(|f| f["values"][0].as_str())
    }

    fn state(&self) -> State {
        let Status { phase, conditions, container_statuses } = &self.status;
        let condition = |name: &str| conditions.iter().find(|c| c.r#type == name);
        if phase == "Running" && condition("Ready").is_some_and(|c| c.status == "True") {
            return State::Ready;
        }
        let waiting = container_statuses.iter().find_map(|c| c.state["waiting"]["reason"].as_str());
        let unscheduled = condition("PodScheduled").filter(|c| c.status == "False").map(|c| c.message.as_str());
        let why = waiting.or(unscheduled).filter(|why| !why.is_empty()).map(|why| format!(", {}", plain(why)));
        let phase = if phase == "Running" { "not ready" } else { phase };
        State::Absent(format!("its pod is {}{}", plain(phase), why.unwrap_or_default()))
    }
}

/// Lists the agents' pods, whatever their phase.
///
/// # Errors
/// No server, no permission, or an answer that is no list; the message is for the user.
pub(super) async fn list(client: &Client, namespace: &str) -> anyhow::Result<Vec<Agent>> {
    let label = LABEL.replace('/', "%2F").replace('=', "%3D");
    let mut agents = Vec::new();
    let mut next = String::new();
    loop {
        let mut path = format!("/api/v1/namespaces/{namespace}/pods?limit={PAGE}&labelSelector={label}");
        if !next.is_empty() {
            path += "&continue=";
            // Continue tokens are base64: these are what a query needs escaped.
            path += &next
                .replace('%', "%25")
                .replace('+', "%2B")
                .replace('/', "%2F")
                .replace('=', "%3D")
                .replace('&', "%26");
        }
        let list = page(client, namespace, &path).await?;
        agents.extend(list.items.into_iter().map(Pod::agent));
        next = list.metadata.r#continue;
        if next.is_empty() {
            return Ok(agents);
        }
    }
}

async fn page(client: &Client, namespace: &str, path: &str) -> anyhow::Result<List> {
    let request = Request::get(path).header("accept", "application/json").body(Body::empty())?;
    let answer = client.send(request).await;
    let answer = answer.map_err(|e| anyhow::anyhow!("cannot reach the API server: {}", sentence(&e)))?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), MAX_PAGE_BYTES).collect().await;
    let body =
        body.map_err(|e| anyhow::anyhow!("cannot read the list of agents: {}", plain(&e.to_string())))?.to_bytes();
    if status.is_success() {
        return serde_json::from_slice(&body)
            .map_err(|e| anyhow::anyhow!("the API server sent something that is no list of pods: {e}"));
    }
    let said = serde_json::from_slice::<serde_json::Value>(&body)
        .ok()
        .and_then(|status| status["message"].as_str().map(plain))
        .unwrap_or_else(|| plain(&String::from_utf8_lossy(&body)));
    match status {
        StatusCode::FORBIDDEN => anyhow::bail!(
            "no permission to find the agents: grant the verb list on pods in the namespace {namespace} ({said})"
        ),
        StatusCode::UNAUTHORIZED => {
            anyhow::bail!("the API server does not accept the credentials of the kubeconfig ({said})")
        }
        other => anyhow::bail!("the API server does not list the pods of the namespace {namespace}: {other}: {said}"),
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
            Agent { pod: "p".to_owned(), node: "a".to_owned(), state: State::Ready }
        );
        let absent = |status: Value| match pod(json!({"nodeName": "a"}), status).state {
            State::Absent(why) => why,
            State::Ready => panic!("ready"),
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
            State::Absent("its pod is Pending, 0/2 nodes are available: Insufficient memory.".to_owned())
        );
        assert_eq!(pod(json!({}), status).node, "of pod p", "nobody's node makes the window incomplete all the same");
    }
}
