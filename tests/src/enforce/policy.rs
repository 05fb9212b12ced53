//! NetworkPolicy (`networking.k8s.io/v1`), read strictly: a field that is not known here is an
//! error, because a filter that passed over it would be wider or narrower than what was written.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use serde_json::Value;

/// A policy.
#[derive(Debug)]
pub(super) struct Policy {
    /// `metadata.namespace`.
    pub(super) namespace: String,
    /// `metadata.name`.
    pub(super) name: String,
    /// `spec`.
    pub(super) spec: Spec,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Spec {
    pod_selector: Option<Selector>,
    policy_types: Option<Vec<String>>,
    ingress: Option<Vec<Rule>>,
    egress: Option<Vec<Rule>>,
}

/// A direction of traffic, seen from the selected pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Into it.
    In,
    /// Out of it.
    Out,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rule {
    from: Option<Vec<PeerRule>>,
    to: Option<Vec<PeerRule>>,
    ports: Option<Vec<PortRule>>,
}

/// An entry of `from` or `to`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct PeerRule {
    /// `podSelector`.
    pub(super) pod_selector: Option<Selector>,
    /// `namespaceSelector`.
    pub(super) namespace_selector: Option<Selector>,
    /// `ipBlock`.
    pub(super) ip_block: Option<Block>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Block {
    /// `cidr`.
    pub(super) cidr: String,
    except: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct PortRule {
    protocol: Option<String>,
    /// `port`.
    pub(super) port: Option<NumberOrName>,
    /// `endPort`.
    pub(super) end_port: Option<u16>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum NumberOrName {
    Number(u16),
    Name(String),
}

/// A label selector.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Selector {
    match_labels: Option<BTreeMap<String, String>>,
    match_expressions: Option<Vec<Expression>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expression {
    key: String,
    operator: Operator,
    values: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl Policy {
    /// From an object.
    ///
    /// # Errors
    /// It is not what the API server would take.
    pub(super) fn read(object: &Value) -> Result<Self> {
        let text = |key: &str| object["metadata"][key].as_str().map(str::to_owned);
        let name = text("name").context("a NetworkPolicy without metadata.name")?;
        let namespace = text("namespace").with_context(|| format!("{name} has no namespace"))?;
        if object["apiVersion"] != "networking.k8s.io/v1" {
            bail!("{namespace}/{name}: apiVersion {} is not networking.k8s.io/v1", object["apiVersion"]);
        }
        let spec: Spec =
            serde_json::from_value(object["spec"].clone()).with_context(|| format!("{namespace}/{name}"))?;
        let policy = Self { namespace, name, spec };
        policy.validate().with_context(|| format!("{}/{}", policy.namespace, policy.name))?;
        Ok(policy)
    }

    fn validate(&self) -> Result<()> {
        for way in [Way::In, Way::Out] {
            for rule in self.rules(way) {
                if (way == Way::In && rule.to.is_some()) || (way == Way::Out && rule.from.is_some()) {
                    bail!("`from` belongs to ingress and `to` to egress");
                }
                for peer in rule.peers() {
                    match (&peer.ip_block, &peer.pod_selector, &peer.namespace_selector) {
                        (None, None, None) => bail!("a peer without any field"),
                        (Some(_), None, None) | (None, ..) => {}
                        _ => bail!("ipBlock stands beside a selector"),
                    }
                }
                for port in rule.ports() {
                    match (&port.port, port.end_port) {
                        (Some(NumberOrName::Number(first)), Some(last)) if last >= *first => {}
                        (_, Some(_)) => bail!("endPort needs a port, which is a number and not above it"),
                        _ => {}
                    }
                    if !["TCP", "UDP", "SCTP"].contains(&port.protocol()) {
                        bail!("protocol {}", port.protocol());
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether it selects a pod of this namespace with these labels.
    pub(super) fn selects(&self, namespace: &str, labels: &BTreeMap<String, String>) -> bool {
        self.namespace == namespace && self.spec.pod_selector.as_ref().is_none_or(|s| s.matches(labels))
    }

    /// Whether it closes the pods that it selects in this direction. Without `policyTypes`: ingress
    /// always, egress if there is a rule for it.
    pub(super) fn closes(&self, way: Way) -> bool {
        let name = if way == Way::In { "Ingress" } else { "Egress" };
        match self.spec.policy_types.as_deref() {
            None | Some([]) => way == Way::In || !self.rules(Way::Out).is_empty(),
            Some(types) => types.iter().any(|t| t == name),
        }
    }

    /// Its rules of a direction.
    pub(super) fn rules(&self, way: Way) -> &[Rule] {
        let rules = if way == Way::In { &self.spec.ingress } else { &self.spec.egress };
        rules.as_deref().unwrap_or_default()
    }
}

impl Rule {
    /// The other ends; none: anybody.
    pub(super) fn peers(&self) -> &[PeerRule] {
        self.from.as_deref().or(self.to.as_deref()).unwrap_or_default()
    }

    /// The ports; none: every port of every protocol.
    pub(super) fn ports(&self) -> &[PortRule] {
        self.ports.as_deref().unwrap_or_default()
    }
}

impl Block {
    /// `except`.
    pub(super) fn except(&self) -> &[String] {
        self.except.as_deref().unwrap_or_default()
    }
}

impl PortRule {
    /// `protocol`, by default TCP.
    pub(super) fn protocol(&self) -> &str {
        self.protocol.as_deref().unwrap_or("TCP")
    }
}

impl Selector {
    /// Whether it matches these labels: all of `matchLabels` and all of `matchExpressions`.
    pub(super) fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let exact = self.match_labels.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
        exact
            && self.match_expressions.iter().flatten().all(|expression| {
                let value = labels.get(&expression.key);
                let listed = value.is_some_and(|v| expression.values.iter().flatten().any(|listed| listed == v));
                match expression.operator {
                    Operator::In => listed,
                    Operator::NotIn => !listed,
                    Operator::Exists => value.is_some(),
                    Operator::DoesNotExist => value.is_none(),
                }
            })
    }
}
