//! How the network in use reads policies: the Kubernetes API to the letter, Cilium, or the AWS VPC
//! CNI.

use std::collections::BTreeMap;

use super::identity::LabelFilter;
use crate::model::tier::{Feature, TierPolicy};

/// The data plane that enforces the policies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Dataplane {
    /// What the API says, to the letter.
    #[default]
    Kubernetes,
    /// Cilium, with the options of its agent.
    Cilium(CiliumOptions),
    /// AWS VPC CNI with its network policy agent. Verdicts on pod ports are those of
    /// [`Dataplane::Kubernetes`]; egress is judged at the address that a pod asks for, and a
    /// Service's own is admitted by name or if the rule's selector matches the Service's
    /// (aws/amazon-network-policy-controller-k8s, `pkg/resolvers/endpoints.go`).
    AwsVpcCni,
}

/// Options of Cilium's agent that decide verdicts; [`Default`] is what the agent does without a
/// configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CiliumOptions {
    /// `enable-policy`.
    pub enforcement: Enforcement,
    /// `allow-localhost`: the own node may always reach its pods, but for `policy`.
    pub allow_localhost: bool,
    /// `policy-cidr-match-mode` holds `nodes`: address ranges match nodes.
    pub cidr_nodes: bool,
    /// `policy-cidr-match-mode` holds `pods`: address ranges match pods.
    pub cidr_pods: bool,
    /// `enable-host-firewall`: policies with `nodeSelector` are enforced.
    pub host_firewall: bool,
    /// `enable-node-selector-labels`: `fromNodes` and `toNodes` are accepted.
    pub node_selectors: bool,
    /// `labels`: which labels are part of an identity.
    pub labels: LabelFilter,
    /// `cluster-name`.
    pub cluster: String,
    /// Major and minor of the release; `None`: not known, the latest is taken.
    pub version: Option<(u16, u16)>,
}

impl Default for CiliumOptions {
    fn default() -> Self {
        Self {
            enforcement: Enforcement::Default,
            allow_localhost: true,
            cidr_nodes: false,
            cidr_pods: false,
            host_firewall: false,
            node_selectors: false,
            labels: LabelFilter::default(),
            cluster: "default".to_owned(),
            version: None,
        }
    }
}

/// `enable-policy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enforcement {
    /// Endpoints are isolated by the policies that select them.
    Default,
    /// Every endpoint is isolated.
    Always,
    /// Policies are ignored.
    Never,
}

impl CiliumOptions {
    /// From the keys of the ConfigMap `cilium-config`, of the agent's command line, or `version`;
    /// other keys are ignored.
    ///
    /// # Errors
    /// One sentence about a value that a known key does not take.
    pub fn from_keys(keys: &BTreeMap<String, String>) -> Result<Self, String> {
        let mut options = Self::default();
        for (key, value) in keys {
            let value = value.trim();
            let flag = || match value {
                "true" | "yes" | "1" | "enabled" => Ok(true),
                "false" | "no" | "0" | "disabled" | "" => Ok(false),
                _ => Err(format!("`{key}` is `{value}`; it is true or false")),
            };
            match key.as_str() {
                "enable-policy" => {
                    options.enforcement = match value {
                        "default" | "" => Enforcement::Default,
                        "always" => Enforcement::Always,
                        "never" => Enforcement::Never,
                        _ => return Err(format!("`{key}` is `{value}`; it is default, always or never")),
                    }
                }
                "allow-localhost" => {
                    options.allow_localhost = match value {
                        "auto" | "always" | "" => true,
                        "policy" => false,
                        _ => return Err(format!("`{key}` is `{value}`; it is auto, always or policy")),
                    }
                }
                "policy-cidr-match-mode" => {
                    for mode in value.split([',', ' ']).filter(|m| !m.is_empty()) {
                        match mode {
                            "nodes" => options.cidr_nodes = true,
                            "pods" => options.cidr_pods = true,
                            _ => return Err(format!("`{key}` holds `{mode}`; it takes nodes and pods")),
                        }
                    }
                }
                "enable-host-firewall" | "host-firewall" => options.host_firewall = flag()?,
                "enable-node-selector-labels" => options.node_selectors = flag()?,
                "labels" => options.labels = LabelFilter::parse(value)?,
                "cluster-name" if !value.is_empty() => options.cluster = value.to_owned(),
                "version" => options.version = Some(version(value)?),
                _ => {}
            }
        }
        Ok(options)
    }
}

fn version(text: &str) -> Result<(u16, u16), String> {
    let mut parts = text.trim_start_matches('v').split('.');
    let mut number = || parts.next().and_then(|p| p.parse().ok());
    number().zip(number()).ok_or_else(|| format!("`version` is `{text}`; write it like 1.18"))
}

impl Dataplane {
    /// Cilium's options, if it is Cilium.
    #[must_use]
    pub fn cilium(&self) -> Option<&CiliumOptions> {
        match self {
            Self::Cilium(options) => Some(options),
            Self::Kubernetes | Self::AwsVpcCni => None,
        }
    }

    /// Whether egress is judged at the address that was asked for: before a Service's address is
    /// translated to a pod's.
    #[must_use]
    pub fn judges_what_was_asked(&self) -> bool {
        *self == Self::AwsVpcCni
    }

    /// Why the data plane refuses this policy, or reads it otherwise than written: line and
    /// sentence.
    #[must_use]
    pub fn refuses(&self, policy: &TierPolicy) -> Vec<(u32, String)> {
        let Some(options) = self.cilium() else { return Vec::new() };
        let refused = policy.needs.iter().filter_map(|need| {
            let message = match need.what {
                Feature::NodeSelector if !options.node_selectors => {
                    "fromNodes and toNodes need the agent option enable-node-selector-labels, which is off: Cilium rejects the policy"
                }
                Feature::Requires if options.version.is_none_or(|v| v >= (1, 19)) => {
                    "fromRequires and toRequires exist until Cilium 1.18; name that release as `version` in --dataplane-config, or remove them"
                }
                _ => return None,
            };
            Some((need.line, message.to_owned()))
        });
        refused.collect()
    }
}
