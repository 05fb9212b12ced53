//! What the dialects ask of a cluster beyond pods, namespaces, nodes and addresses.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use guardrail_graph::{
    WorkloadRef,
    inventory::{EndpointSlice, Service},
    snapshot::Body,
};
use ipnet::IpNet;

use super::{Cluster, ClusterPod};
use crate::model::{Labels, logged::LoggedEnd};

/// Facts of Kubernetes objects that only policies ask for. [`crate::read::Reader`] collects them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// `spec.serviceAccountName` by namespace and pod.
    pub service_accounts: BTreeMap<(String, String), String>,
    /// `metadata.labels` by namespace and Service.
    pub service_labels: BTreeMap<(String, String), Labels>,
    /// `CiliumCIDRGroup`s: labels and ranges by name.
    pub cidr_groups: BTreeMap<String, (Labels, Vec<IpNet>)>,
    /// `data` of the ConfigMap `cilium-config`.
    pub cilium_config: Option<BTreeMap<String, String>>,
}

/// A Service, as `toServices` sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterService {
    /// `metadata.labels`.
    pub labels: Labels,
    /// `spec.selector`; empty: the addresses are given by its EndpointSlices.
    pub selector: Labels,
    /// Addresses of its EndpointSlices.
    pub addresses: BTreeSet<IpAddr>,
}

/// The API server's own addresses that a snapshot knows: what is behind Service
/// `default/kubernetes` at its end.
pub(crate) fn api_servers_in(body: &Body) -> BTreeSet<IpAddr> {
    let kubernetes = body.services.iter().filter(|s| s.namespace == "default" && s.name == "kubernetes");
    let backends = kubernetes.flat_map(|s| &s.ports).flat_map(|port| &port.backends);
    backends.filter(|backend| backend.to.is_none()).map(|backend| backend.address.to_canonical()).collect()
}

impl Cluster {
    /// Adds what a [`crate::read::Reader`] found beside policies.
    #[must_use]
    pub fn with_facts(mut self, facts: &Facts) -> Self {
        for pod in &mut self.pods {
            if let Some(account) = facts.service_accounts.get(&(pod.namespace.clone(), pod.name.clone())) {
                pod.service_account = Some(account.clone());
            }
        }
        for (key, labels) in &facts.service_labels {
            if let Some(service) = self.services.get_mut(key) {
                service.labels = labels.clone();
            }
        }
        self.cidr_groups.extend(facts.cidr_groups.clone());
        self
    }

    /// Adds names and the addresses that they stand for. `all`: there are no others; else an
    /// address may be one of any name.
    #[must_use]
    pub fn with_names(mut self, names: impl IntoIterator<Item = (String, IpAddr)>, all: bool) -> Self {
        for (name, address) in names {
            let name = name.trim_end_matches('.').to_ascii_lowercase();
            self.names.entry(name).or_default().insert(address.to_canonical());
        }
        self.all_names |= all;
        self
    }

    /// Adds pods that only a log knows, with the identity that they had. Their ports are those of
    /// other pods of their workload; gives the names of pods for which there is none.
    #[must_use]
    pub fn with_logged<'a>(mut self, ends: impl IntoIterator<Item = &'a LoggedEnd>) -> (Self, BTreeSet<String>) {
        let mut known: BTreeSet<String> = self.pods.iter().map(ClusterPod::full_name).collect();
        let controlled = self.pods.iter().zip(0_usize..).filter_map(|(pod, i)| Some((pod.workload.clone()?, i)));
        let siblings: BTreeMap<WorkloadRef, usize> = controlled.collect();
        let mut without_ports = BTreeSet::new();
        for (end, seen) in ends.into_iter().filter_map(|end| Some((end, end.pod.as_ref()?))) {
            let name = format!("{}/{}", seen.namespace, seen.name);
            if !known.insert(name.clone()) {
                continue;
            }
            if !seen.namespace_labels.is_empty() && !self.has_namespace(&seen.namespace) {
                self.set_namespace(&seen.namespace, seen.namespace_labels.clone());
            }
            let workload = seen.workload.as_ref().map(|(kind, name)| WorkloadRef {
                namespace: seen.namespace.clone(),
                owner: kind.clone(),
                name: name.clone(),
            });
            let sibling = workload.as_ref().and_then(|w| siblings.get(w)).map(|index| &self.pods[*index]);
            let pod = ClusterPod {
                namespace: seen.namespace.clone(),
                name: seen.name.clone(),
                labels: seen.labels.clone(),
                addresses: end.address.into_iter().collect(),
                ports: sibling.map(|p| p.ports.clone()).unwrap_or_default(),
                declared_ports: sibling.map(|p| p.declared_ports.clone()).unwrap_or_default(),
                service_account: seen.service_account.clone(),
                workload,
                ..ClusterPod::default()
            };
            if sibling.is_none() {
                without_ports.insert(name);
            }
            self.push_pod(pod);
        }
        (self, without_ports)
    }

    /// The API server's own addresses: the endpoints of `default/kubernetes`; `None` if they are
    /// not known.
    #[must_use]
    pub fn api_servers(&self) -> Option<&BTreeSet<IpAddr>> {
        let service = self.services.get(&("default".to_owned(), "kubernetes".to_owned()))?;
        (!service.addresses.is_empty()).then_some(&service.addresses)
    }

    pub(super) fn add_service_facts(&mut self, service: &Service) {
        let known = self.services.entry((service.namespace.clone(), service.name.clone())).or_default();
        known.selector = service.selector.to_map();
    }

    pub(super) fn add_slice(&mut self, slice: &EndpointSlice) {
        let Some(name) = &slice.service else { return };
        let known = self.services.entry((slice.namespace.clone(), name.clone())).or_default();
        known.addresses.extend(slice.endpoints.iter().flat_map(|e| &e.addresses).map(IpAddr::to_canonical));
    }
}
