//! Enforces NetworkPolicy in the lab: policies become packet filters at the pods' ends of their
//! links, so that what was exported is tried on real packets.
//!
//! Input: NetworkPolicy objects as YAML files and the lab's own table of pods. Output: iptables
//! rules in the namespaces of the nodes. It follows the Kubernetes API to the letter and shares
//! nothing with guardrail: its types, its selectors and its reading of a rule are its own, so that
//! an error in guardrail's is not made twice.
//!
//! What the API leaves open, networks answer differently. A [`Judge`] says how.
//!
//! - A connection is allowed if the client's egress and the server's ingress allow it. A pod is
//!   closed in a direction once a policy selects it there.
//! - A pod and its own node always reach each other. Pods on the host's network are their node.
//! - Only TCP, UDP and SCTP are judged.

mod policy;
mod rules;

use std::{path::Path, process::Command};

use anyhow::Result;

pub use self::rules::{AskedPlace, Judge, Memory};
use crate::{lab::Lab, policies};

/// Puts the NetworkPolicies below a directory into force on every node, in place of those before.
///
/// # Errors
/// A file cannot be read or is no policy that the API server would take, or the kernel refuses.
pub fn enforce(lab: &Lab, judge: Judge, directory: &Path) -> Result<()> {
    let files = policies::read(directory)?;
    let all = policies::network_policies(&files).map(policy::Policy::read).collect::<Result<Vec<_>>>()?;
    for (index, node) in lab.nodes.iter().enumerate() {
        for (restore, v6) in [("iptables-restore", false), ("ip6tables-restore", true)] {
            let text = rules::of_node(&lab.cluster, &all, judge, (index, v6))?;
            node.netns.feed(&mut Command::new(restore), &text)?;
        }
    }
    Ok(())
}
