//! Workloads by name: their pods, or a pod made from the template where there is none (a rendered
//! chart, a CronJob between two runs, 0 replicas).

use std::collections::{BTreeMap, BTreeSet};

use guardrail_graph::{
    WorkloadRef,
    inventory::{Controller, Inventory, Object},
};

use super::{Cluster, ClusterPod, DeclaredPort, End, Evaluator, UnknownEnd};
use crate::model::job_label;

impl Cluster {
    /// As [`Cluster::from_objects`], and the pods know their workload; each controller of its own
    /// without a live pod gets one that bears its template's labels and ports, without address and
    /// node. Its name is in parentheses, which no pod's is.
    #[must_use]
    pub fn with_templates(objects: &[Object]) -> Self {
        let mut cluster = Self::from_objects(objects);
        let inventory = Inventory::from_objects(objects.iter().cloned());
        let owners: BTreeMap<(&str, &str), WorkloadRef> = inventory
            .pods()
            .map(|pod| ((pod.namespace.as_str(), pod.name.as_str()), inventory.owner_of(pod).workload))
            .collect();
        for pod in &mut cluster.pods {
            pod.workload = owners.get(&(pod.namespace.as_str(), pod.name.as_str())).cloned();
        }
        let live: BTreeSet<WorkloadRef> =
            cluster.pods.iter().filter(|pod| !pod.finished).filter_map(|pod| pod.workload.clone()).collect();
        for controller in inventory.controllers().filter(|c| c.controller.is_none()) {
            let workload = WorkloadRef {
                namespace: controller.namespace.clone(),
                owner: controller.kind.clone(),
                name: controller.name.clone(),
            };
            if let Some(own) = controller.selector.as_ref().filter(|own| own.match_expressions.is_empty()) {
                cluster.selectors.insert(workload.clone(), (*own.match_labels).clone());
            }
            if !live.contains(&workload) {
                cluster.push_pod(stand_in(controller, workload));
            }
        }
        cluster
    }
}

fn stand_in(controller: &Controller, workload: WorkloadRef) -> ClusterPod {
    let mut labels = controller.template_labels.to_map();
    if let Some((key, name)) = job_label(&workload) {
        labels.insert(format!("batch.kubernetes.io/{key}"), name.clone());
        labels.insert(key, name);
    }
    let ports = &controller.template_ports;
    ClusterPod {
        namespace: controller.namespace.clone(),
        name: format!("({} {})", controller.kind, controller.name),
        labels,
        host_network: controller.template_host_network,
        ports: ports.iter().filter_map(|p| Some((p.name.clone()?, p.protocol.parse().ok()?, p.port))).collect(),
        declared_ports: ports
            .iter()
            .filter_map(|p| Some(DeclaredPort { protocol: p.protocol.parse().ok()?, port: p.port, host_port: None }))
            .collect(),
        workload: Some(workload),
        ..ClusterPod::default()
    }
}

impl Evaluator {
    /// The one pod of the workload that `namespace/name` or `namespace/Kind/name` names; `None` if
    /// nothing is called so.
    pub(super) fn end_of_workload(&self, text: &str) -> Option<Result<End, UnknownEnd>> {
        let pods = self.pods_of_workload(text);
        match pods[..] {
            [] => None,
            [pod] => Some(Ok(self.end_of_pod(pod))),
            _ => {
                let names = pods.iter().take(3).map(|pod| self.cluster().pods[*pod as usize].full_name());
                let pods = names.collect::<Vec<_>>().join(", ");
                Some(Err(UnknownEnd::Several { name: text.to_owned(), pods }))
            }
        }
    }

    /// Indices of the live pods of the workloads with this name, `namespace/name` or
    /// `namespace/Kind/name`; stand-ins too.
    #[must_use]
    pub fn pods_of_workload(&self, text: &str) -> Vec<u32> {
        let parts: Vec<&str> = text.split('/').collect();
        let is = |workload: &WorkloadRef| match parts[..] {
            [namespace, name] => workload.namespace == namespace && workload.name == name,
            [namespace, kind, name] => {
                workload.namespace == namespace && workload.owner == kind && workload.name == name
            }
            _ => false,
        };
        let pods = self.cluster().pods.iter().zip(0..).filter(|(pod, _)| !pod.finished);
        pods.filter(|(pod, _)| pod.workload.as_ref().is_some_and(is)).map(|(_, index)| index).collect()
    }
}
