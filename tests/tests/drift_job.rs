//! The component `drift-check`: a job that fails if traffic, policies and plan do not agree. Its
//! command is run as deploy/ has it, with files where the pod has volumes; with a kubeconfig where
//! it has a service account, but for the one test that gives it that.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    thread,
};

use guardrail_graph::{
    Snapshot,
    snapshot::{Interval, Source},
};
use guardrail_kube::Resource;
use guardrail_policy::read::is_read;
use guardrail_tests::{
    apiserver::{ApiServer, Forward, agent_pod},
    bins, deployed,
};
use serde_json::{Value, json};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, ServerConfig,
        pki_types::{PrivateKeyDer, pem::PemObject as _},
    },
};

fn objects() -> Vec<Value> {
    deployed::overlay("drift-check").unwrap()
}

fn named<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    objects.iter().find(|o| o["kind"] == kind && o["metadata"]["name"] == name).expect(name)
}

/// The job's container.
fn container(objects: &[Value]) -> Value {
    let pod = &named(objects, "CronJob", "guardrail-drift")["spec"]["jobTemplate"]["spec"]["template"]["spec"];
    pod["containers"][0].clone()
}

/// The job's arguments: what Kubernetes puts for `$(NAME)`, and this machine's paths.
fn arguments(directory: &Path) -> Vec<String> {
    let container = container(&objects());
    let args = container["args"].as_array().unwrap().iter().map(|arg| arg.as_str().unwrap());
    let here = directory.display().to_string();
    let filled = args.map(|arg| {
        arg.replace("$(NAMESPACE)", "guardrail")
            .replace("$(ENVIRONMENT)", "production")
            .replace("/etc/guardrail", &here)
    });
    filled.collect()
}

const POLICY: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed, namespace: shop}
spec: {podSelector: {}, policyTypes: [Ingress]}
";

struct Cluster {
    server: ApiServer,
    directory: tempfile::TempDir,
}

impl Cluster {
    /// One node with its agent, one namespace; the plan, and the policies as they should be.
    fn new() -> Self {
        let objects = [
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "uid": "n"}}),
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a", "uid": "node"}}),
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": "shop", "uid": "p", "labels": {"app": "web"}},
                "spec": {"nodeName": "a", "containers": [{"name": "c", "image": "i"}]}, "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}]}}),
            agent_pod("agent-a", "a", true),
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "closed", "namespace": "shop", "uid": "np"},
                "spec": {"podSelector": {}, "policyTypes": ["Ingress"]}}),
        ];
        let server = ApiServer::serving(TcpListener::bind("127.0.0.1:0").unwrap(), &objects).unwrap();
        server.forward("guardrail", "agent-a", agent());
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir(at("plan")).unwrap();
        // As the kubelet lays out a ConfigMap.
        fs::create_dir_all(at("policies/..2026")).unwrap();
        std::os::unix::fs::symlink("..2026", at("policies/..data")).unwrap();
        std::os::unix::fs::symlink("..data/policies.yaml", at("policies/policies.yaml")).unwrap();
        fs::write(at("policies/..data/policies.yaml"), POLICY).unwrap();
        fs::write(at("config"), server.kubeconfig(None)).unwrap();
        let cluster = Self { server, directory };
        cluster.plan("default-deny");
        cluster
    }

    fn plan(&self, phase: &str) {
        let plan = format!(
            "apiVersion: guardrail.dev/v1alpha1\nkind: Plan\nspec:\n  environments:\n    production: {{context: prod-eu, phase: observe, namespaces: {{shop: {{phase: {phase}}}}}}}\n"
        );
        fs::write(self.directory.path().join("plan/guardrail.yaml"), plan).unwrap();
    }

    /// The command; with `in_pod` as it stands in the component, else by the kubeconfig and its
    /// context of the plan's name.
    fn run(&self, in_pod: bool) -> (Option<i32>, String) {
        let config = self.directory.path().join("config");
        let text = fs::read_to_string(&config).unwrap().replace("lab", "prod-eu");
        fs::write(&config, text).unwrap();
        let args = arguments(self.directory.path()).into_iter().filter(|arg| in_pod || arg != "--in-cluster");
        let output = Command::new(bins::find("guardrail"))
            .args(args)
            .env("KUBECONFIG", &config)
            .env("HOME", "/nonexistent")
            .env_remove("KUBERNETES_SERVICE_HOST")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        (output.status.code(), said.concat())
    }
}

/// The agent of node a, which saw nobody.
fn agent() -> Forward {
    let at = |second: i64| guardrail_graph::Timestamp::from_unix_ns(second * 1_000_000_000);
    let mut snapshot = Snapshot::empty();
    let body = &mut snapshot.body;
    body.sources.insert(Source { node: "a".to_owned(), instance: "i".to_owned(), start: None });
    body.window.nodes.insert("a".to_owned(), vec![Interval { from: at(0), to: at(60) }]);
    body.coverage.nodes.observed.insert("a".to_owned());
    body.coverage.nodes.expected.insert("a".to_owned());
    let body = guardrail_graph::snapshot::merge(vec![snapshot]).to_json();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
                head.push(byte[0]);
            }
            let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        }
    });
    Forward::To(Box::new(move |_| TcpStream::connect(address)))
}

#[test]
fn the_job_succeeds_while_all_agree_and_fails_with_what_does_not() {
    let cluster = Cluster::new();
    let (code, said) = cluster.run(false);
    assert_eq!((code, said.as_str()), (Some(0), "No drift.\n"));
    // Somebody edits the cluster; a namespace is not as far as the plan says.
    cluster.server.delete("networkpolicies", "shop", "closed");
    let (code, said) = cluster.run(false);
    assert!(code == Some(1) && said.contains("GD010") && said.contains("GD020"), "{said}");
}

#[test]
fn in_a_pod_the_service_account_is_asked_and_no_kubeconfig() {
    // There is none here, and the kubeconfig that would do is not looked at.
    let cluster = Cluster::new();
    let (code, said) = cluster.run(true);
    assert_eq!(code, Some(2), "{said}");
    assert!(
        said.starts_with("error: --in-cluster is for pods with a service account, and there is none here: "),
        "{said}"
    );

    if !bins::can_run("a pod's file system") {
        return;
    }
    let pod = Pod::new(&cluster, "the job's");
    let (code, said) = pod.run(&cluster);
    assert_eq!((code, said.as_str()), (Some(0), "No drift.\n"));
    cluster.server.delete("networkpolicies", "shop", "closed");
    let (code, said) = pod.run(&cluster);
    assert!(code == Some(1) && said.contains("GD010") && said.contains("GD020"), "{said}");
    // Another pod's token, and a server that the cluster's authority did not sign.
    let (code, said) = Pod::new(&cluster, "somebody's").run(&cluster);
    assert!(code == Some(2) && said.contains("does not accept the credentials"), "{said}");
    let (stranger, pod) = (Pod::new(&cluster, "the job's"), Pod::new(&cluster, "the job's"));
    fs::copy(stranger.account.path().join("ca.crt"), pod.account.path().join("ca.crt")).unwrap();
    let (code, said) = pod.run(&cluster);
    assert!(code == Some(2) && said.contains("certificate"), "{said}");
}

/// What the kubelet gives a pod: a service account, and where the API server is, which speaks TLS.
struct Pod {
    account: tempfile::TempDir,
    port: u16,
}

impl Pod {
    /// A pod with this token; the server knows the job's.
    fn new(cluster: &Cluster, token: &str) -> Self {
        cluster.server.manners(|manners| manners.tokens = Some(["the job's".to_owned()].into()));
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let account = tempfile::tempdir().unwrap();
        for (name, text) in [("token", token), ("namespace", "guardrail"), ("ca.crt", &made.cert.pem())] {
            fs::write(account.path().join(name), text).unwrap();
        }
        let key = PrivateKeyDer::from_pem_slice(made.signing_key.serialize_pem().as_bytes()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let server = cluster.server.url().trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        listener.set_nonblocking(true).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        thread::spawn(move || {
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                while let Ok((stream, _)) = listener.accept().await {
                    let (acceptor, server) = (acceptor.clone(), server.clone());
                    tokio::spawn(async move {
                        // Who does not trust the certificate goes.
                        let Ok(mut stream) = acceptor.accept(stream).await else { return };
                        let mut server = tokio::net::TcpStream::connect(server).await.unwrap();
                        let _ = tokio::io::copy_bidirectional(&mut stream, &mut server).await;
                    });
                }
            });
        });
        Self { account, port }
    }

    /// The component's command, as it stands there.
    fn run(&self, cluster: &Cluster) -> (Option<i32>, String) {
        let mounted = "/run/secrets/kubernetes.io/serviceaccount";
        let prepare = format!(
            "mount -t tmpfs none /run && mkdir -p {mounted} && cp {}/* {mounted} && exec \"$@\"",
            self.account.path().display()
        );
        let output = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", &prepare, "sh"])
            .arg(bins::find("guardrail"))
            .args(arguments(cluster.directory.path()))
            .env("KUBERNETES_SERVICE_HOST", "127.0.0.1")
            .env("KUBERNETES_SERVICE_PORT", self.port.to_string())
            .env("HOME", "/nonexistent")
            .env_remove("KUBECONFIG")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        (output.status.code(), said.concat())
    }
}

#[test]
fn without_any_of_its_rights_there_is_no_answer_and_it_has_no_others() {
    let objects = objects();
    let granted = |kind: &str| -> BTreeSet<(String, String, String)> {
        let texts = |value: &Value| -> Vec<String> {
            value.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
        };
        let mut all = BTreeSet::new();
        for rule in named(&objects, kind, "guardrail-drift")["rules"].as_array().unwrap() {
            for (group, resource) in texts(&rule["apiGroups"])
                .iter()
                .flat_map(|g| texts(&rule["resources"]).into_iter().map(move |r| (g, r)))
            {
                all.extend(texts(&rule["verbs"]).into_iter().map(|verb| (verb, group.clone(), resource.clone())));
            }
        }
        all
    };
    let list = |group: &str, resource: &str| ("list".to_owned(), group.to_owned(), resource.to_owned());
    let mut needed: BTreeSet<_> = Resource::ALL.iter().map(|r| list(r.group(), r.as_str())).collect();
    for (group, kinds) in KINDS {
        for kind in kinds.split(' ') {
            assert!(is_read(kind, group), "{kind} of {group} is never asked for");
            let plural = match kind.to_lowercase() {
                name if name.ends_with('y') => format!("{}ies", &name[..name.len() - 1]),
                name if name.ends_with('s') => name,
                name => format!("{name}s"),
            };
            needed.insert(list(group, &plural));
        }
    }
    needed.insert(("get".to_owned(), String::new(), "configmaps".to_owned()));
    assert_eq!(granted("ClusterRole"), needed);
    let forward = ["get", "create"].map(|verb| (verb.to_owned(), String::new(), "pods/portforward".to_owned()));
    assert_eq!(granted("Role"), forward.into());

    let cluster = Cluster::new();
    for resource in Resource::ALL {
        cluster.server.manners(|manners| manners.denied = [("list".to_owned(), resource.as_str().to_owned())].into());
        let (code, said) = cluster.run(false);
        assert!(code == Some(2) && said.contains("permission"), "{}: {said}", resource.as_str());
    }
    for verb in ["get", "create"] {
        cluster.server.manners(|manners| manners.denied = [(verb.to_owned(), "pods/portforward".to_owned())].into());
        let (code, said) = cluster.run(false);
        assert!(code == Some(2) && said.contains("pods/portforward"), "{verb}: {said}");
    }
}

/// What a cluster may have beside NetworkPolicy that says who may connect (group, kinds).
const KINDS: [(&str, &str); 14] = [
    ("policy.networking.k8s.io", "AdminNetworkPolicy BaselineAdminNetworkPolicy ClusterNetworkPolicy"),
    ("cilium.io", "CiliumNetworkPolicy CiliumClusterwideNetworkPolicy CiliumCIDRGroup"),
    ("crd.projectcalico.org", "NetworkPolicy GlobalNetworkPolicy"),
    ("projectcalico.org", "NetworkPolicy GlobalNetworkPolicy"),
    ("crd.antrea.io", "NetworkPolicy ClusterNetworkPolicy"),
    ("k8s.ovn.org", "EgressFirewall UserDefinedNetwork ClusterUserDefinedNetwork"),
    ("network.openshift.io", "EgressNetworkPolicy"),
    ("security.istio.io", "AuthorizationPolicy PeerAuthentication"),
    ("policy.linkerd.io", "AuthorizationPolicy EgressNetwork Server ServerAuthorization"),
    ("auth.consul.hashicorp.com", "TrafficPermissions"),
    ("consul.hashicorp.com", "ServiceIntentions"),
    ("kuma.io", "MeshTrafficPermission TrafficPermission"),
    ("crd.nsx.vmware.com", "SecurityPolicy"),
    ("vpcresources.k8s.aws", "SecurityGroupPolicy"),
];

#[test]
fn the_job_is_confined_and_reads_what_the_documentation_says() {
    let objects = objects();
    let job = &named(&objects, "CronJob", "guardrail-drift")["spec"];
    assert_eq!((&job["concurrencyPolicy"], &job["jobTemplate"]["spec"]["backoffLimit"]), (&"Forbid".into(), &0.into()));
    let pod = &job["jobTemplate"]["spec"]["template"]["spec"];
    assert_eq!(pod["serviceAccountName"], "guardrail-drift");
    assert!(pod.get("hostPID").is_none() && pod.get("hostNetwork").is_none(), "{pod}");
    let volumes: Vec<&str> =
        pod["volumes"].as_array().unwrap().iter().map(|v| v["configMap"]["name"].as_str().unwrap()).collect();
    assert_eq!(volumes, ["guardrail-plan", "guardrail-policies"]);
    let security = &container(&objects)["securityContext"];
    assert_eq!(
        *security,
        json!({
            "runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532, "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true, "seccompProfile": {"type": "RuntimeDefault"}, "capabilities": {"drop": ["ALL"]},
        })
    );
    for kind in ["ClusterRoleBinding", "RoleBinding"] {
        let binding = named(&objects, kind, "guardrail-drift");
        assert_eq!(binding["roleRef"]["name"], "guardrail-drift", "{kind}");
        assert_eq!(
            binding["subjects"],
            json!([{"kind": "ServiceAccount", "name": "guardrail-drift", "namespace": "guardrail"}]),
            "{kind}"
        );
    }
    let readme = fs::read_to_string(deployed::directory().join("README.md")).unwrap();
    for said in ["create configmap guardrail-plan", "create configmap guardrail-policies", "kube_job_status_failed"] {
        assert!(readme.contains(said), "{said}");
    }
}

#[test]
fn the_alert_of_the_documentation_passes_promtool() {
    let readme = fs::read_to_string(deployed::directory().join("README.md")).unwrap();
    let rule = readme.split("```yaml\n").skip(1).map(|block| block.split("```").next().unwrap());
    let rule = rule.into_iter().find(|block| block.contains("kube_job_status_failed")).expect("an alert");
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("rules.yaml"), rule).unwrap();
    let test = "rule_files: [rules.yaml]
tests:
- input_series:
  - {series: 'kube_job_status_failed{namespace=\"guardrail\",job_name=\"guardrail-drift-29400000\"}', values: '1x10'}
  - {series: 'kube_job_status_failed{namespace=\"guardrail\",job_name=\"guardrail-prune-29400000\"}', values: '1x10'}
  - {series: 'kube_job_status_failed{namespace=\"guardrail\",job_name=\"guardrail-drift-29400060\"}', values: '0x10'}
  alert_rule_test:
  - alertname: GuardrailDrift
    eval_time: 5m
    exp_alerts:
    - exp_labels: {severity: warning, namespace: guardrail, job_name: guardrail-drift-29400000}
      exp_annotations: {summary: 'traffic, policies and plan do not agree: kubectl -n guardrail logs job/guardrail-drift-29400000'}
";
    fs::write(dir.path().join("test.yaml"), test).unwrap();
    for args in [["check", "rules", "rules.yaml"], ["test", "rules", "test.yaml"]] {
        let out = Command::new("promtool").args(args).current_dir(dir.path()).output().expect("promtool is installed");
        let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(out.status.success(), "{args:?}: {said}");
    }
}
