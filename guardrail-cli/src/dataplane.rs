//! Which data plane enforces the policies, and its options: from the command line, else from the
//! inventory.

use anyhow::bail;
use clap::{
    ValueEnum,
    builder::{PossibleValuesParser, TypedValueParser},
};
use guardrail_graph::inventory::Object;
use guardrail_policy::{
    evaluate::{CiliumOptions, Cluster, Dataplane},
    generate::Format,
    model::tier::TierPolicy,
    read::{self, PolicySet},
};

use crate::input::{self, Inventory, tell};

/// Largest file of names or options, bytes.
const MAX_BYTES: usize = 256 << 20;

/// Options that say how the network in use reads policies.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct DataplaneArgs {
    /// What enforces the policies; else the inventory tells (ConfigMap cilium-config, DaemonSet
    /// aws-node), else kubernetes, which follows the API to the letter
    #[arg(long, value_enum, value_name = "NAME")]
    dataplane: Option<Name>,

    /// Options of Cilium's agent: the ConfigMap cilium-config or its keys, as YAML; else the
    /// inventory's ConfigMap
    #[arg(long, value_name = "FILE")]
    dataplane_config: Option<String>,

    /// Every DNS name that was resolved, with its addresses: CSV with the header name,ip
    /// (repeatable)
    #[arg(long, value_name = "FILE.csv")]
    names: Vec<String>,
}

/// Takes out the policies of which the data plane enforces none of their kind.
pub(crate) fn not_enforced(forms: &mut Vec<TierPolicy>, enforcer: &Dataplane) -> Vec<TierPolicy> {
    if enforcer.cilium().is_some() {
        return Vec::new();
    }
    forms.extract_if(.., |form| form.kind.is_cilium()).collect()
}

/// Why the data plane refuses a policy, as problems in its file.
pub(crate) fn refusals(form: &TierPolicy, enforcer: &Dataplane) -> Vec<String> {
    let told = |(line, message): (u32, String)| {
        let at = form.at(line).map(|at| format!("{at}: ")).unwrap_or_default();
        format!("{at}{}: {message}", form.key())
    };
    enforcer.refuses(form).into_iter().map(told).collect()
}

/// The formats of policies by name, so that a shell can complete them.
pub(crate) fn formats() -> impl TypedValueParser<Value = Format> {
    PossibleValuesParser::new([Format::NetworkPolicy, Format::Cilium].map(Format::as_str))
        .try_map(|name| name.parse::<Format>())
}

/// The data planes by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Name {
    /// The Kubernetes API to the letter
    Kubernetes,
    /// Cilium
    Cilium,
    /// AWS VPC CNI with its network policy agent
    AwsVpcCni,
}

impl DataplaneArgs {
    /// Whether objects of the inventory are asked for what only policies of some kinds need.
    pub(crate) fn wants_facts(&self, proposed: &PolicySet) -> bool {
        self.dataplane == Some(Name::Cilium) || proposed.forms.iter().any(|p| p.kind.is_cilium())
    }

    /// The data plane.
    pub(crate) fn find(&self, proposed: &PolicySet, inventory: &Inventory) -> anyhow::Result<Dataplane> {
        let config = inventory.policies.facts.cilium_config.as_ref();
        let forms = || proposed.forms.iter().chain(&inventory.policies.forms);
        let aws = |object: &Object| match object {
            Object::Controller(c) => c.kind == "DaemonSet" && c.namespace == "kube-system" && c.name == "aws-node",
            _ => false,
        };
        let name = match self.dataplane {
            Some(name) => name,
            None if config.is_some() || self.dataplane_config.is_some() => Name::Cilium,
            None if forms().any(|p| p.kind.is_cilium()) => {
                tell(
                    "note",
                    &"there are policies of Cilium, so its reading of all policies applies; --dataplane says otherwise",
                );
                Name::Cilium
            }
            None if inventory.objects.iter().any(aws) => Name::AwsVpcCni,
            None => Name::Kubernetes,
        };
        if name != Name::Cilium {
            if let Some(file) = &self.dataplane_config {
                bail!("{file}: --dataplane-config is for --dataplane cilium");
            }
            return Ok(if name == Name::AwsVpcCni { Dataplane::AwsVpcCni } else { Dataplane::Kubernetes });
        }
        self.cilium(inventory)
    }

    /// Cilium, whatever the inventory says.
    ///
    /// # Errors
    /// If the command line names another data plane, or the options cannot be read.
    pub(crate) fn cilium(&self, inventory: &Inventory) -> anyhow::Result<Dataplane> {
        self.may_be_cilium()?;
        let (keys, source) = match &self.dataplane_config {
            Some(file) => {
                let keys = read::options(input::shown(file), &input::bytes(file, MAX_BYTES)?)?;
                (keys, input::shown(file))
            }
            None => {
                let config = inventory.policies.facts.cilium_config.clone();
                (config.unwrap_or_default(), "ConfigMap cilium-config")
            }
        };
        let options = CiliumOptions::from_keys(&keys).map_err(|error| anyhow::anyhow!("{source}: {error}"))?;
        Ok(Dataplane::Cilium(options))
    }

    fn may_be_cilium(&self) -> anyhow::Result<()> {
        let Some(other) = self.dataplane.filter(|name| *name != Name::Cilium) else { return Ok(()) };
        let name = other.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
        bail!("--format cilium is enforced by Cilium only, and --dataplane says {name}")
    }

    /// Takes Cilium for the data plane if policies are to be written in its form.
    ///
    /// # Errors
    /// If the command line names another data plane.
    pub(crate) fn enforces(&mut self, format: Format) -> anyhow::Result<()> {
        if format == Format::Cilium {
            self.may_be_cilium()?;
            self.dataplane = Some(Name::Cilium);
        }
        Ok(())
    }

    /// Adds the names of `--names`.
    pub(crate) fn with_names(&self, mut cluster: Cluster) -> anyhow::Result<Cluster> {
        for file in &self.names {
            let names = read::names(input::shown(file), &input::bytes(file, MAX_BYTES)?)?;
            cluster = cluster.with_names(names, true);
        }
        Ok(cluster)
    }
}
