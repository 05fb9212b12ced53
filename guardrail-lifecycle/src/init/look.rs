//! What a workload is by the look of it: its ports, its name, its namespace.

use std::collections::BTreeSet;

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

/// Why the workload should be closed first: by a port that it serves to somebody, by an image, or
/// by its name.
pub(super) fn reason_to_close(
    workload: &WorkloadRef,
    served: &[&EdgeRecord],
    images: Option<&BTreeSet<String>>,
) -> Option<String> {
    let by_port = |edge: &&EdgeRecord| {
        PORTS.iter().find(|(port, _)| *port == edge.port).map(|(port, what)| format!("serves {what} at {port}"))
    };
    let by_image = || {
        images.into_iter().flatten().find_map(|image| {
            let (name, (_, what)) = (repository(image), known(repository(image))?);
            Some(format!("runs the image {name}, which speaks of {what}"))
        })
    };
    let by_name = || {
        let names = [&workload.name, &workload.namespace];
        names.into_iter().find_map(|name| {
            let (word, what) = known(name)?;
            Some(format!("{word} in its name, which speaks of {what}"))
        })
    };
    served.iter().find_map(by_port).or_else(by_image).or_else(by_name)
}

/// The first part of a name that speaks of something.
fn known(name: &str) -> Option<&'static (&'static str, &'static str)> {
    let known = |part: &str| NAMES.iter().find(|(word, _)| part.eq_ignore_ascii_case(word));
    name.split(['-', '.', '_', '/']).find_map(known)
}

/// `library/postgres` of `registry.example:5000/library/postgres:16@sha256:…`: without the
/// registry, which may be called anything.
fn repository(image: &str) -> &str {
    let image = image.split('@').next().unwrap_or(image);
    let is_registry = |part: &str| part.contains(['.', ':']) || part == "localhost";
    let path = image.split_once('/').filter(|(first, _)| is_registry(first)).map_or(image, |(_, path)| path);
    let tag = path.rfind(':').filter(|at| !path[*at..].contains('/'));
    &path[..tag.unwrap_or(path.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_known_by_its_repository_alone() {
        for (image, name, speaks_of) in [
            ("postgres:16", "postgres", Some("a database")),
            ("registry.example:5000/library/postgres:16@sha256:0123", "library/postgres", Some("a database")),
            ("quay.io/keycloak/keycloak", "keycloak/keycloak", Some("identity")),
            ("localhost/acme/payment-api:v1.2", "acme/payment-api", Some("payment")),
            // The registry's own name says nothing, nor does a tag.
            ("vault.example.org/shop/web:1", "shop/web", None),
            ("shop/web:postgres", "shop/web", None),
        ] {
            assert_eq!(
                (repository(image), known(repository(image)).map(|(_, what)| *what)),
                (name, speaks_of),
                "{image}"
            );
        }
    }
}
