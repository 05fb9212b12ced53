//! Egress at a Service's own address, where the network judges what was asked for before it is
//! translated to a pod's (AWS VPC CNI; docs/data-planes.md).
//!
//! Such a network admits the address if a rule names it at the Service's port, or if the rule's
//! `podSelector` matches the Service's own selector and its port leads to the pods' port
//! (aws/amazon-network-policy-controller-k8s, `pkg/resolvers/endpoints.go`).

use std::{collections::BTreeMap, net::IpAddr};

use super::{ClusterPod, Evaluator, RuleRef, SideVerdict};
use crate::model::{Labels, Protocol};

/// A Service that was asked for, as far as such a network knows it.
#[derive(Clone, Debug)]
pub struct AskedService<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Its selector.
    pub selector: Labels,
}

/// A call of it.
#[derive(Clone, Copy, Debug)]
pub struct AskedPort {
    /// The Service's address.
    pub address: IpAddr,
    /// Protocol.
    pub protocol: Protocol,
    /// The Service's port.
    pub front: u16,
    /// The port of the pods behind it.
    pub behind: u16,
}

/// Policies, and what stands for Services before their addresses are translated.
#[derive(Debug)]
pub struct AskedServices {
    evaluator: Evaluator,
    stand_ins: BTreeMap<(String, String), u32>,
}

impl AskedServices {
    /// `None`: this network judges behind the translation.
    #[must_use]
    pub fn new<'a>(evaluator: &Evaluator, services: impl Iterator<Item = AskedService<'a>>) -> Option<Self> {
        if !evaluator.dataplane().judges_what_was_asked() {
            return None;
        }
        let all: Vec<AskedService<'a>> = services.filter(|service| !service.selector.is_empty()).collect();
        let own = &evaluator.cluster().pods;
        // What a rule says of pods it says of a pod that has just the labels of the selector. Names
        // of ports mean those of the pods behind.
        let stand_in = |service: &AskedService<'_>| {
            let has = |pod: &&ClusterPod| {
                pod.namespace == service.namespace
                    && service.selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value))
            };
            let ports = own.iter().find(has).map(|pod| pod.ports.clone()).unwrap_or_default();
            ClusterPod {
                namespace: service.namespace.to_owned(),
                name: format!("(service {})", service.name),
                labels: service.selector.clone(),
                ports,
                ..ClusterPod::default()
            }
        };
        let probed = evaluator.with_pods(all.iter().map(stand_in));
        let first = u32::try_from(own.len()).unwrap_or(u32::MAX);
        let key = |service: &AskedService<'_>| (service.namespace.to_owned(), service.name.to_owned());
        let stand_ins = all.iter().map(key).zip(first..).collect();
        Some(Self { evaluator: probed, stand_ins })
    }

    /// What the egress policies of a pod say of a Service at its own address.
    #[must_use]
    pub fn egress(&self, pod: u32, service: (&str, &str), asked: AskedPort) -> SideVerdict {
        let AskedPort { address, protocol, front, behind } = asked;
        let pod = self.evaluator.end_of_pod(pod);
        let vip = self.evaluator.end_of_address(address);
        let at_address = self.evaluator.evaluate(&pod, &vip, protocol, front).egress;
        if at_address.allows() {
            return at_address;
        }
        let Some(stand_in) = self.stand_ins.get(&(service.0.to_owned(), service.1.to_owned())) else {
            return at_address;
        };
        let stand_in = self.evaluator.end_of_pod(*stand_in);
        let by_selector = self.evaluator.evaluate(&pod, &stand_in, protocol, behind).egress;
        // A rule that names addresses or nobody admits ports of the address, not of the pods.
        let of_addresses = self.evaluator.evaluate(&pod, &vip, protocol, behind).egress;
        match by_selector {
            SideVerdict::AllowedBy(rules) => {
                let rules: Vec<RuleRef> =
                    rules.into_iter().filter(|rule| !of_addresses.rules().contains(rule)).collect();
                if rules.is_empty() { SideVerdict::Denied } else { SideVerdict::AllowedBy(rules) }
            }
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use guardrail_graph::inventory::read as objects;

    use super::*;
    use crate::{
        evaluate::{Cluster, Dataplane},
        read,
    };

    const CLUSTER: &str = "
kind: Namespace
metadata: {name: shop}
---
kind: Namespace
metadata: {name: data}
---
kind: Pod
metadata: {name: web, namespace: shop, uid: u1, labels: {app: web}}
spec: {nodeName: a, containers: [{name: c}]}
status: {phase: Running, podIP: 10.244.1.2}
---
kind: Pod
metadata: {name: db, namespace: data, uid: u2, labels: {app: db, tier: sql}}
spec: {nodeName: b, containers: [{name: c, ports: [{name: sql, containerPort: 5432}]}]}
status: {phase: Running, podIP: 10.244.2.3}
";

    fn allows(rule: &str, dataplane: &Dataplane) -> Option<bool> {
        let cluster = Cluster::from_objects(&objects::objects(CLUSTER, "cluster").unwrap().objects);
        let text = format!(
            "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: web, namespace: shop}}, \
             spec: {{podSelector: {{}}, policyTypes: [Egress], egress: [{rule}]}}}}"
        );
        let policies = read::policies("p.yaml", text.as_bytes()).unwrap().policies;
        let evaluator = Evaluator::mixed(cluster, policies, Vec::new(), dataplane);
        let selector = Labels::from([("app".to_owned(), "db".to_owned())]);
        let service = AskedService { namespace: "data", name: "db", selector };
        let asked = AskedServices::new(&evaluator, std::iter::once(service))?;
        let address = "10.96.0.7".parse().unwrap();
        let port = AskedPort { address, protocol: Protocol::Tcp, front: 80, behind: 5432 };
        let web = evaluator.cluster().pods.iter().position(|pod| pod.name == "web").unwrap();
        Some(asked.egress(u32::try_from(web).unwrap(), ("data", "db"), port).allows())
    }

    #[test]
    fn a_services_address_is_admitted_by_its_own_selector_or_by_its_name_and_by_nothing_else() {
        let to = |labels: &str, port: &str| {
            format!(
                "{{to: [{{namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: data}}}}, \
                 podSelector: {{matchLabels: {labels}}}}}], ports: [{{port: {port}}}]}}"
            )
        };
        for (rule, expected) in [
            (to("{app: db}", "5432"), true),
            (to("{app: db}", "sql"), true),
            // The Service does not select by it.
            (to("{app: db, tier: sql}", "5432"), false),
            // The port of the Service is none of the pods.
            (to("{app: db}", "80"), false),
            ("{to: [{ipBlock: {cidr: 10.96.0.7/32}}], ports: [{port: 80}]}".to_owned(), true),
            ("{to: [{ipBlock: {cidr: 10.96.0.7/32}}], ports: [{port: 5432}]}".to_owned(), false),
            ("{to: [{ipBlock: {cidr: 10.244.0.0/16}}]}".to_owned(), false),
            ("{ports: [{port: 80}]}".to_owned(), true),
            ("{ports: [{port: 5432}]}".to_owned(), false),
            ("{}".to_owned(), true),
        ] {
            assert_eq!(allows(&rule, &Dataplane::AwsVpcCni), Some(expected), "{rule}");
        }
        assert_eq!(allows("{}", &Dataplane::Kubernetes), None, "it judges at the pods");
    }
}
