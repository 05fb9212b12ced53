//! NetworkPolicy, `networking.k8s.io/v1`.

use std::collections::BTreeMap;

use guardrail_graph::{Protocol, snapshot::LabelSelector};
use serde::Serialize;

use super::Metadata;

use crate::generate::{PlannedPolicy, PlannedRule, PortRef, RulePeer};

/// A NetworkPolicy as it is printed: fields in the order that people write, `policyTypes` always
/// explicit.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkPolicyObject {
    api_version: &'static str,
    kind: &'static str,
    metadata: Metadata,
    spec: Spec,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    pod_selector: LabelSelector,
    policy_types: Vec<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ingress: Option<Vec<IngressRule>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    egress: Option<Vec<EgressRule>>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct IngressRule {
    from: Vec<Peer>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ports: Vec<Port>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct EgressRule {
    to: Vec<Peer>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ports: Vec<Port>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Peer {
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace_selector: Option<LabelSelector>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod_selector: Option<LabelSelector>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip_block: Option<IpBlock>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct IpBlock {
    cidr: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    except: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Port {
    protocol: Protocol,
    port: IntOrString,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
enum IntOrString {
    Int(u16),
    String(String),
}

impl From<&PlannedPolicy> for NetworkPolicyObject {
    /// # Panics
    /// If a peer is an entity or a name, which only plans for Cilium hold.
    fn from(policy: &PlannedPolicy) -> Self {
        let mut policy_types = Vec::new();
        if policy.ingress.is_some() {
            policy_types.push("Ingress");
        }
        if policy.egress.is_some() {
            policy_types.push("Egress");
        }
        let ingress = |rule: &PlannedRule| IngressRule { from: peers(rule), ports: ports(rule) };
        let egress = |rule: &PlannedRule| EgressRule { to: peers(rule), ports: ports(rule) };
        Self {
            api_version: "networking.k8s.io/v1",
            kind: "NetworkPolicy",
            metadata: Metadata::of(policy),
            spec: Spec {
                pod_selector: policy.subject.clone(),
                policy_types,
                // A list without rules and a missing list mean the same with explicit policyTypes;
                // the missing one reads better.
                ingress: policy
                    .ingress
                    .as_ref()
                    .filter(|r| !r.is_empty())
                    .map(|rules| rules.iter().map(ingress).collect()),
                egress: policy
                    .egress
                    .as_ref()
                    .filter(|r| !r.is_empty())
                    .map(|rules| rules.iter().map(egress).collect()),
            },
        }
    }
}

fn peers(rule: &PlannedRule) -> Vec<Peer> {
    rule.peers.iter().map(peer).collect()
}

fn peer(peer: &RulePeer) -> Peer {
    match peer {
        RulePeer::Pods { namespace, selector } => Peer {
            namespace_selector: namespace.as_ref().map(|name| {
                LabelSelector::of_labels(BTreeMap::from([("kubernetes.io/metadata.name".to_owned(), name.clone())]))
            }),
            pod_selector: Some(selector.clone()),
            ip_block: None,
        },
        RulePeer::EveryPod => Peer {
            namespace_selector: Some(LabelSelector::default()),
            pod_selector: Some(LabelSelector::default()),
            ip_block: None,
        },
        RulePeer::Block { cidr, except } => Peer {
            namespace_selector: None,
            pod_selector: None,
            ip_block: Some(IpBlock {
                cidr: cidr.to_string(),
                except: except.iter().map(ToString::to_string).collect(),
            }),
        },
        // Without its peer the rule would be open to everybody.
        RulePeer::Entity(_) | RulePeer::Name(_) => unreachable!("a NetworkPolicy names pods and ranges: {peer:?}"),
    }
}

fn ports(rule: &PlannedRule) -> Vec<Port> {
    rule.ports
        .iter()
        .map(|port| Port {
            protocol: port.protocol,
            port: match &port.port {
                PortRef::Number(number) => IntOrString::Int(*number),
                PortRef::Name(name) => IntOrString::String(name.clone()),
            },
        })
        .collect()
}
