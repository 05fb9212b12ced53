//! What a workload is by the look of it: its ports, its name, its namespace.

use guardrail_graph::{WorkloadRef, snapshot::EdgeRecord};

/// Ports of servers that hold data or secrets, and what listens there.
const PORTS: [(u16, &str); 17] = [
    (88, "Kerberos"),
    (389, "LDAP"),
    (636, "LDAP"),
    (1433, "SQL Server"),
    (1521, "Oracle"),
    (2379, "etcd"),
    (3306, "MySQL"),
    (5432, "PostgreSQL"),
    (5984, "CouchDB"),
    (6379, "Redis"),
    (7687, "Neo4j"),
    (8200, "Vault"),
    (9042, "Cassandra"),
    (9092, "Kafka"),
    (9200, "Elasticsearch"),
    (11211, "memcached"),
    (27017, "MongoDB"),
];

/// Parts of names, and what they speak of.
const NAMES: [(&str, &str); 31] = [
    ("auth", "identity"),
    ("billing", "payment"),
    ("cassandra", "a database"),
    ("checkout", "payment"),
    ("cockroach", "a database"),
    ("database", "a database"),
    ("db", "a database"),
    ("dex", "identity"),
    ("elasticsearch", "a database"),
    ("etcd", "a database"),
    ("iam", "identity"),
    ("identity", "identity"),
    ("keycloak", "identity"),
    ("kms", "secrets"),
    ("ldap", "identity"),
    ("login", "identity"),
    ("mariadb", "a database"),
    ("mongo", "a database"),
    ("mongodb", "a database"),
    ("mysql", "a database"),
    ("oauth", "identity"),
    ("oauth2", "identity"),
    ("opensearch", "a database"),
    ("payment", "payment"),
    ("payments", "payment"),
    ("postgres", "a database"),
    ("postgresql", "a database"),
    ("redis", "a database"),
    ("secrets", "secrets"),
    ("vault", "secrets"),
    ("wallet", "payment"),
];

/// Namespaces that run a cluster, beside those that end in `-system` or begin with `kube-` or
/// `openshift-`.
const SYSTEM: [&str; 9] = [
    "calico-apiserver",
    "cert-manager",
    "guardrail",
    "ingress-nginx",
    "istio-ingress",
    "linkerd",
    "linkerd-viz",
    "local-path-storage",
    "tigera-operator",
];

/// Whether what is in this namespace runs the cluster.
pub(super) fn runs_the_cluster(namespace: &str) -> bool {
    SYSTEM.contains(&namespace)
        || namespace.ends_with("-system")
        || ["kube-", "openshift-"].iter().any(|beginning| namespace.starts_with(beginning))
}

/// Whether the edge only reads metrics, by the port.
pub(super) fn is_metrics(edge: &EdgeRecord) -> bool {
    edge.port_name.as_ref().is_some_and(|name| name.contains("metrics") || name.contains("prom"))
        || matches!(edge.port, 2112 | 8081 | 9090..=9091 | 9093..=9199 | 9201..=9999 | 10249..=10259)
}

/// Why the workload should be closed first, by a port that it serves to somebody or by its name.
pub(super) fn reason_to_close(workload: &WorkloadRef, served: &[&EdgeRecord]) -> Option<String> {
    let by_port = |edge: &&EdgeRecord| {
        PORTS.iter().find(|(port, _)| *port == edge.port).map(|(port, what)| format!("serves {what} at {port}"))
    };
    let by_name = || {
        let names = [&workload.name, &workload.namespace];
        names.into_iter().find_map(|name| {
            let known = |part: &str| NAMES.iter().find(|(word, _)| part.eq_ignore_ascii_case(word));
            let (word, what) = name.split(['-', '.', '_']).find_map(known)?;
            Some(format!("{word} in its name, which speaks of {what}"))
        })
    };
    served.iter().find_map(by_port).or_else(by_name)
}
