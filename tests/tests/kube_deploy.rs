//! deploy/: what `kubectl kustomize` makes of each overlay, checked for what it may do.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

use guardrail_tests::deployed::{self, directory as deploy};
use serde_json::Value;

fn render(overlay: &str) -> Vec<Value> {
    deployed::overlay(overlay).unwrap_or_else(|e| panic!("{overlay}: {e:#}"))
}

/// The folders of deploy/DIR.
fn folders(dir: &str) -> Vec<String> {
    let entries = std::fs::read_dir(deploy().join(dir)).unwrap();
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn overlays() -> Vec<(String, Vec<Value>)> {
    let names = folders("overlays");
    let expected = [
        "audit-only",
        "drift-check",
        "kernel-before-5.11",
        "pinned",
        "plain",
        "prometheus-operator",
        "prune-exceptions",
        "scope-node",
        "seccomp-unconfined",
        "unobservable-nodes",
        "without-host-pid",
    ];
    assert_eq!(names, expected);
    names
        .into_iter()
        .map(|name| {
            let objects = render(&name);
            (name, objects)
        })
        .collect()
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|o| o["kind"] == kind).collect()
}

fn texts(value: &Value) -> BTreeSet<String> {
    value.as_array().into_iter().flatten().map(|v| v.as_str().unwrap().to_owned()).collect()
}

fn set(items: &[&str]) -> BTreeSet<String> {
    items.iter().map(|s| (*s).to_owned()).collect()
}

#[test]
fn the_agent_is_confined_in_every_overlay() {
    for (name, objects) in overlays() {
        let sets = of_kind(&objects, "DaemonSet");
        assert_eq!(sets.len(), 1, "{name}");
        let pod = &sets[0]["spec"]["template"]["spec"];
        for forbidden in ["hostNetwork", "hostIPC", "shareProcessNamespace"] {
            assert!(pod[forbidden].is_null(), "{name}: {forbidden}");
        }
        assert_eq!(pod["hostPID"] == true, name != "without-host-pid", "{name}: hostPID");
        assert_eq!(pod["serviceAccountName"], "guardrail-agent");
        assert_eq!(pod["tolerations"], serde_json::json!([{"operator": "Exists"}]), "{name}: every node");
        let class = of_kind(&objects, "PriorityClass")[0];
        assert_eq!(pod["priorityClassName"], class["metadata"]["name"], "{name}");
        assert!(
            class["value"].as_i64().is_some_and(|v| (1..=1_000_000_000).contains(&v)),
            "what users may define: {class}"
        );
        assert_eq!(sets[0]["spec"]["updateStrategy"]["type"], "RollingUpdate");
        assert_eq!(pod["containers"].as_array().unwrap().len(), 1);
        let container = &pod["containers"][0];
        // The default is Always for images without a tag and for `latest`. A registry has no such
        // image.
        assert_eq!(container["imagePullPolicy"], "IfNotPresent", "{name}");
        let security = &container["securityContext"];
        assert_eq!(security["privileged"], false, "{name}");
        assert_eq!(security["allowPrivilegeEscalation"], false, "{name}");
        assert_eq!(security["readOnlyRootFilesystem"], true, "{name}");
        assert_eq!(security["runAsUser"], 0);
        assert_eq!(texts(&security["capabilities"]["drop"]), set(&["ALL"]), "{name}");
        let mut capabilities = set(&["BPF", "PERFMON", "NET_ADMIN"]);
        if name == "kernel-before-5.11" {
            capabilities.insert("SYS_RESOURCE".to_owned());
        }
        assert_eq!(texts(&security["capabilities"]["add"]), capabilities, "{name}");
        let seccomp = if name == "seccomp-unconfined" { "Unconfined" } else { "RuntimeDefault" };
        assert_eq!(security["seccompProfile"]["type"], seccomp, "{name}");
        for (kind, what) in [("requests", "cpu"), ("requests", "memory"), ("limits", "memory")] {
            assert!(container["resources"][kind][what].is_string(), "{name}: {kind}.{what}");
        }
        let mounts: BTreeMap<&str, &Value> =
            container["volumeMounts"].as_array().unwrap().iter().map(|m| (m["name"].as_str().unwrap(), m)).collect();
        assert_eq!(mounts["cgroup"]["readOnly"], true, "{name}");
        let paths: BTreeSet<_> =
            pod["volumes"].as_array().unwrap().iter().map(|v| v["hostPath"]["path"].as_str().unwrap()).collect();
        let mut allowed = BTreeSet::from(["/sys/fs/cgroup", "/var/lib/guardrail"]);
        if name == "pinned" {
            allowed.insert("/sys/fs/bpf/guardrail");
        }
        assert_eq!(paths, allowed, "{name}: nothing else of the host");
    }
}

/// The object as the API server understands it: what its schema has no field for is gone.
fn understood<T: serde::de::DeserializeOwned + serde::Serialize>(object: &Value) -> Value {
    let typed: T = serde_json::from_value(object.clone()).unwrap_or_else(|e| panic!("{e} in {object}"));
    serde_json::to_value(typed).unwrap()
}

#[test]
fn every_field_is_one_that_kubernetes_has() {
    use k8s_openapi::api::{
        apps::v1::DaemonSet,
        batch::v1::CronJob,
        core::v1::{Namespace, ServiceAccount},
        rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding},
        scheduling::v1::PriorityClass,
    };
    for (name, objects) in overlays() {
        for object in &objects {
            let same = match object["kind"].as_str().unwrap() {
                "ClusterRole" => understood::<ClusterRole>(object),
                "ClusterRoleBinding" => understood::<ClusterRoleBinding>(object),
                "CronJob" => understood::<CronJob>(object),
                "DaemonSet" => understood::<DaemonSet>(object),
                "Namespace" => understood::<Namespace>(object),
                "PriorityClass" => understood::<PriorityClass>(object),
                "Role" => understood::<Role>(object),
                "RoleBinding" => understood::<RoleBinding>(object),
                "ServiceAccount" => understood::<ServiceAccount>(object),
                // The Prometheus operator's: its own test below.
                "PodMonitor" | "PrometheusRule" => continue,
                other => panic!("{name}: {other} has no check"),
            };
            assert_eq!(&same, object, "{name}: a field that is not in the API");
        }
        let namespace = of_kind(&objects, "Namespace")[0];
        for mode in ["enforce", "audit", "warn"] {
            let label = format!("pod-security.kubernetes.io/{mode}");
            assert_eq!(namespace["metadata"]["labels"][&label], "privileged", "{name}: {label}");
        }
        for object in objects.iter().filter(|o| !o["metadata"]["namespace"].is_null()) {
            assert_eq!(object["metadata"]["namespace"], "guardrail", "{name}: {object}");
        }
    }
}

#[test]
fn overlays_combine_as_components() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let folders = folders("components");
    let up = "../".repeat(dir.path().canonicalize().unwrap().components().count() - 1);
    let at = |path: String| {
        format!("{up}{}", deploy().join(path).canonicalize().unwrap().strip_prefix("/").unwrap().display())
    };
    let components: Vec<_> = folders.iter().map(|c| at(format!("components/{c}"))).collect();
    let images = [serde_json::json!({"name": "guardrail", "newName": "registry.example.com/g", "newTag": "1"})];
    let all = serde_json::json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "namespace": "guardrail",
        "resources": [at("base".to_owned())], "components": components, "images": images,
    });
    std::fs::write(dir.path().join("kustomization.yaml"), all.to_string()).unwrap();
    let objects = deployed::render(dir.path()).unwrap();
    let pod = deployed::pod(&objects).unwrap();
    let container = &pod["containers"][0];
    assert_eq!(container["image"], "registry.example.com/g:1");
    assert_eq!(container["imagePullPolicy"], "IfNotPresent");
    assert!(texts(&container["securityContext"]["capabilities"]["add"]).contains("SYS_RESOURCE"));
    assert_eq!(container["securityContext"]["seccompProfile"]["type"], "Unconfined");
    assert!(pod["hostPID"].is_null());
    for (kind, count) in [("PodMonitor", 1), ("PrometheusRule", 1), ("Role", 2), ("CronJob", 2)] {
        assert_eq!(of_kind(&objects, kind).len(), count, "{kind}");
    }
}

#[test]
fn probes_reach_what_is_open_and_arguments_ask_for_authentication() {
    for (name, objects) in overlays() {
        let container = &of_kind(&objects, "DaemonSet")[0]["spec"]["template"]["spec"]["containers"][0];
        let port = &container["ports"][0]["name"];
        for (probe, path) in
            [("startupProbe", "/healthz"), ("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")]
        {
            let get = &container[probe]["httpGet"];
            assert_eq!(get["path"], path, "{name}: {probe}");
            assert_eq!(&get["port"], port, "{name}: {probe}");
            assert_eq!(get["scheme"], "HTTPS", "{name}: {probe}");
            // The default of one second is less than a busy node takes for a TLS handshake.
            assert!(container[probe]["timeoutSeconds"].as_u64().is_some_and(|s| s >= 5), "{name}: {probe}");
        }
        let args = texts(&container["args"]);
        for arg in ["--inventory=kube", "--auth=kube", "--auth-audience=guardrail", "--local-listen=127.0.0.1:9465"] {
            assert!(args.contains(arg), "{name}: {arg} in {args:?}");
        }
        assert!(!args.iter().any(|a| a.contains("insecure")), "{name}");
        // The agent itself must take them.
        let argv = std::iter::once("guardrail-agent".to_owned()).chain(args.iter().cloned());
        let config = <guardrail_agent::config::Config as clap::Parser>::try_parse_from(argv);
        assert!(config.is_ok(), "{name}: {}", config.unwrap_err());
    }
}

#[test]
fn the_agent_may_read_what_it_watches_and_nothing_else() {
    for (name, objects) in overlays() {
        let roles = of_kind(&objects, "ClusterRole");
        let role = roles.iter().find(|r| r["metadata"]["name"] == "guardrail-agent").expect("its role");
        let mut watched = BTreeSet::new();
        let mut reviews = BTreeSet::new();
        for rule in role["rules"].as_array().unwrap() {
            let pairs = texts(&rule["apiGroups"])
                .into_iter()
                .flat_map(|g| texts(&rule["resources"]).into_iter().map(move |r| (g.clone(), r)))
                .collect::<Vec<_>>();
            let verbs = texts(&rule["verbs"]);
            if verbs == set(&["get", "list", "watch"]) {
                watched.extend(pairs);
            } else {
                assert_eq!(verbs, set(&["create"]), "{name}: {rule}");
                reviews.extend(pairs);
            }
        }
        let needed: BTreeSet<(String, String)> =
            guardrail_kube::Resource::ALL.iter().map(|r| (r.group().to_owned(), r.as_str().to_owned())).collect();
        assert_eq!(watched, needed, "{name}");
        let asked = [("authentication.k8s.io", "tokenreviews"), ("authorization.k8s.io", "subjectaccessreviews")];
        assert_eq!(reviews, asked.map(|(g, r)| (g.to_owned(), r.to_owned())).into(), "{name}");

        let text = serde_json::to_string(
            &objects.iter().filter(|o| o["kind"].as_str().unwrap().contains("Role")).collect::<Vec<_>>(),
        )
        .unwrap();
        assert!(!text.contains("\"*\"") && !text.contains("secrets"), "{name}: no wildcard, no secret");
        // The binding names the account in the namespace where the DaemonSet runs.
        for binding in of_kind(&objects, "ClusterRoleBinding") {
            for subject in binding["subjects"].as_array().unwrap() {
                assert_eq!(subject["namespace"], "guardrail", "{name}: {binding}");
            }
        }
    }
}

#[test]
fn the_audit_role_reaches_guardrails_own_namespace_only() {
    let objects = render("audit-only");
    let roles = of_kind(&objects, "Role");
    assert_eq!(roles.len(), 1);
    assert_eq!(roles[0]["metadata"]["namespace"], "guardrail");
    let granted: BTreeMap<String, BTreeSet<String>> = roles[0]["rules"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| (texts(&r["resources"]).into_iter().next().unwrap(), texts(&r["verbs"])))
        .collect();
    assert_eq!(granted["pods"], set(&["list"]));
    assert_eq!(granted["pods/portforward"], set(&["get", "create"]));
    assert_eq!(granted.len(), 2);
}

#[test]
fn what_prunes_may_list_and_delete_policies_and_is_confined() {
    // Nobody else may write, and without the component nobody prunes.
    for (name, objects) in overlays() {
        let text = serde_json::to_string(&objects).unwrap();
        assert_eq!(text.contains("\"delete\""), name == "prune-exceptions", "{name}");
        let jobs: Vec<_> = of_kind(&objects, "CronJob").iter().map(|job| job["metadata"]["name"].clone()).collect();
        let expected: &[&str] = match &*name {
            "prune-exceptions" => &["guardrail-prune"],
            "drift-check" => &["guardrail-drift"],
            _ => &[],
        };
        assert_eq!(jobs, expected, "{name}");
    }
    let objects = render("prune-exceptions");
    let roles = of_kind(&objects, "ClusterRole");
    let role = roles.iter().find(|role| role["metadata"]["name"] == "guardrail-prune").expect("its role");
    let granted: BTreeSet<(BTreeSet<String>, BTreeSet<String>, BTreeSet<String>)> = role["rules"]
        .as_array()
        .unwrap()
        .iter()
        .map(|rule| (texts(&rule["apiGroups"]), texts(&rule["resources"]), texts(&rule["verbs"])))
        .collect();
    let verbs = || set(&["list", "delete"]);
    let expected = [
        (set(&["networking.k8s.io"]), set(&["networkpolicies"]), verbs()),
        (set(&["cilium.io"]), set(&["ciliumnetworkpolicies"]), verbs()),
    ];
    assert_eq!(granted, expected.into());
    let bindings = of_kind(&objects, "ClusterRoleBinding");
    let binding = bindings.iter().find(|b| b["metadata"]["name"] == "guardrail-prune").unwrap();
    assert_eq!(binding["roleRef"]["name"], "guardrail-prune");
    assert_eq!(binding["subjects"][0]["name"], "guardrail-prune");
    assert_eq!(binding["subjects"][0]["namespace"], "guardrail");
    let pod = &of_kind(&objects, "CronJob")[0]["spec"]["jobTemplate"]["spec"]["template"]["spec"];
    assert_eq!(pod["serviceAccountName"], "guardrail-prune");
    let container = &pod["containers"][0];
    assert_eq!(texts(&container["args"]), set(&["prune", "kube", "--yes"]));
    let context = &container["securityContext"];
    assert_eq!((&context["runAsNonRoot"], &context["readOnlyRootFilesystem"]), (&true.into(), &true.into()));
    assert_eq!(texts(&context["capabilities"]["drop"]), set(&["ALL"]));
    assert!(pod.get("volumes").is_none() && pod.get("hostPID").is_none(), "{pod}");
}

fn only(object: &Value, fields: &[&str]) {
    let unknown: Vec<_> = object.as_object().unwrap().keys().filter(|k| !fields.contains(&k.as_str())).collect();
    assert!(unknown.is_empty(), "{unknown:?} in {object}");
}

#[test]
fn nothing_is_applied_that_the_api_server_does_not_store() {
    for (name, objects) in overlays() {
        // Fields that k8s.io/api declares `omitempty` and without a pointer: the server does not
        // store false, so `kubectl apply` patches an object that has it each time.
        for class in of_kind(&objects, "PriorityClass") {
            assert_ne!(class["globalDefault"], false, "{name}");
        }
        for pod in of_kind(&objects, "DaemonSet").iter().map(|set| &set["spec"]["template"]["spec"]) {
            for flag in ["hostPID", "hostNetwork", "hostIPC"] {
                assert_ne!(pod[flag], false, "{name}: {flag}");
            }
            for mount in pod["containers"][0]["volumeMounts"].as_array().unwrap() {
                assert_ne!(mount["readOnly"], false, "{name}: {mount}");
            }
        }
    }
}

#[test]
fn the_pod_monitor_finds_the_pods_and_sends_a_token_that_is_for_the_agents_only() {
    let objects = render("prometheus-operator");
    let monitor = of_kind(&objects, "PodMonitor")[0];
    let set = of_kind(&objects, "DaemonSet")[0];
    let labels = &set["spec"]["template"]["metadata"]["labels"];
    for (label, value) in monitor["spec"]["selector"]["matchLabels"].as_object().unwrap() {
        assert_eq!(&labels[label], value);
    }
    let endpoint = &monitor["spec"]["podMetricsEndpoints"][0];
    // Fields that the definitions of monitoring.coreos.com/v1 have (the operator's generated CRD);
    // the API server refuses or drops others.
    only(&monitor["spec"], &["jobLabel", "podMetricsEndpoints", "scrapeClass", "selector"]);
    only(endpoint, &["interval", "path", "port", "relabelings", "scheme", "tlsConfig"]);
    only(&endpoint["tlsConfig"], &["insecureSkipVerify"]);
    only(&endpoint["relabelings"][0], &["sourceLabels", "targetLabel"]);
    let rules = of_kind(&objects, "PrometheusRule")[0];
    only(&rules["spec"], &["groups"]);
    only(&rules["spec"]["groups"][0], &["name", "rules"]);
    for rule in rules["spec"]["groups"][0]["rules"].as_array().unwrap() {
        only(rule, &["alert", "annotations", "expr", "for", "labels"]);
    }
    assert_eq!((endpoint["scheme"].as_str(), endpoint["path"].as_str()), (Some("https"), Some("/metrics")));
    assert!(of_kind(&objects, "Secret").is_empty(), "a token in a Secret is one for the API server");

    // What the Prometheus object needs besides: the scrape class reads the token that the agents
    // accept.
    let path = deploy().join("components/prometheus-operator/prometheus.yaml");
    let patch: Value = serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let spec = &patch["spec"];
    only(spec, &["scrapeClasses", "volumeMounts", "volumes"]);
    let class = &spec["scrapeClasses"][0];
    only(class, &["authorization", "name"]);
    only(&class["authorization"], &["credentialsFile", "type"]);
    assert_eq!(class["name"], monitor["spec"]["scrapeClass"]);
    let volumes: Vec<k8s_openapi::api::core::v1::Volume> = serde_json::from_value(spec["volumes"].clone()).unwrap();
    assert_eq!(serde_json::to_value(&volumes).unwrap(), spec["volumes"], "a field that is not in the API");
    assert_eq!(spec["volumes"][0]["name"], spec["volumeMounts"][0]["name"]);
    let token = &spec["volumes"][0]["projected"]["sources"][0]["serviceAccountToken"];
    let directory = spec["volumeMounts"][0]["mountPath"].as_str().unwrap();
    let file = format!("{directory}/{}", token["path"].as_str().unwrap());
    assert_eq!(class["authorization"]["credentialsFile"], file.as_str());
    let audience = format!("--auth-audience={}", token["audience"].as_str().unwrap());
    assert!(texts(&set["spec"]["template"]["spec"]["containers"][0]["args"]).contains(&audience), "{audience}");
    let roles = of_kind(&objects, "ClusterRole");
    let role = roles.iter().find(|r| r["metadata"]["name"] == "guardrail-scraper").unwrap();
    assert_eq!(role["rules"], serde_json::json!([{"nonResourceURLs": ["/metrics"], "verbs": ["get"]}]));
}

/// The names of the agent's series in a text of queries.
fn series(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|w| w.starts_with("guardrail_") || w.starts_with("process_"))
        .map(str::to_owned)
        .collect()
}

/// The series that the agent's own encoder writes.
fn exported() -> BTreeSet<String> {
    use guardrail_agent::metrics;
    use guardrail_kernel::KernelStats;
    use guardrail_kube::watch::Status;
    let page = metrics::encode(metrics::Scrape {
        observer: guardrail_graph::observer::Stats::default(),
        kernel: KernelStats::default(),
        inventory: Status::default().report(),
        daemon: metrics::DaemonStats::default(),
        edges: metrics::BoundedEdges::default(),
        bpf_stats_enabled: true,
    })
    .unwrap();
    let types = page.lines().filter_map(|l| l.strip_prefix("# TYPE "));
    types
        .map(|l| l.split_once(' ').unwrap())
        .map(|(n, t)| if t == "counter" { format!("{n}_total") } else { n.to_owned() })
        .collect()
}

#[test]
fn alert_rules_pass_promtool_and_name_series_that_exist() {
    let objects = render("prometheus-operator");
    let rules = of_kind(&objects, "PrometheusRule")[0];
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("rules.yaml"), rules["spec"].to_string()).unwrap();
    std::fs::copy(deploy().join("components/prometheus-operator/rules.test.yaml"), dir.path().join("test.yaml"))
        .unwrap();
    for args in [["check", "rules", "rules.yaml"], ["test", "rules", "test.yaml"]] {
        let out = Command::new("promtool")
            .args(args)
            .current_dir(dir.path())
            .output()
            .expect("promtool is installed (Debian: prometheus)");
        assert!(
            out.status.success(),
            "{args:?}: {}{}",
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        );
    }
    let tested = std::fs::read_to_string(dir.path().join("test.yaml")).unwrap();
    let exported = exported();
    let mut exprs = String::new();
    for rule in rules["spec"]["groups"][0]["rules"].as_array().unwrap() {
        let alert = rule["alert"].as_str().unwrap();
        assert!(tested.contains(&format!("alertname: {alert}")), "{alert} has no test");
        exprs += rule["expr"].as_str().unwrap();
        exprs.push('\n');
    }
    let unknown: Vec<_> = series(&exprs).difference(&exported).cloned().collect();
    assert!(unknown.is_empty(), "rules ask for {unknown:?}, the agent has {exported:?}");
}

/// What Grafana needs to show every panel: ids of their own, places that do not overlap, the chosen
/// data source, a unit.
fn laid_out_well(dashboard: &Value) {
    assert_eq!(dashboard["templating"]["list"][0]["name"], "datasource");
    let mut taken = BTreeSet::new();
    let mut ids = BTreeSet::new();
    let mut titles = String::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{panel}");
        assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{panel}");
        let number = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(number("x") + number("w") <= 24, "{panel}");
        for x in number("x")..number("x") + number("w") {
            for y in number("y")..number("y") + number("h") {
                assert!(taken.insert((x, y)), "two panels at {x}, {y}: {panel}");
            }
        }
        titles += &panel["title"].as_str().unwrap().to_lowercase();
    }
    for subject in ["edges", "unresolved", "losses", "new edges", "cost"] {
        assert!(titles.contains(subject), "{subject} in {titles}");
    }
}

#[test]
fn the_dashboard_asks_for_series_that_exist_in_queries_that_parse() {
    let path = deploy().join("grafana/guardrail.json");
    let dashboard: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    laid_out_well(&dashboard);
    let mut rules = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expr = target["expr"].as_str().unwrap().replace("$__rate_interval", "5m");
            rules.push(serde_json::json!({"record": format!("panel:{}:{}", panel["id"], rules.len()), "expr": expr}));
        }
    }
    assert!(rules.len() >= 8);
    let text = serde_json::json!({"groups": [{"name": "dashboard", "rules": rules}]}).to_string();
    let exported = exported();
    let unknown: Vec<_> = series(&text).difference(&exported).cloned().collect();
    assert!(unknown.is_empty(), "the dashboard asks for {unknown:?}, the agent has {exported:?}");
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("r.yaml"), text).unwrap();
    let out = Command::new("promtool").args(["check", "rules", "r.yaml"]).current_dir(dir.path()).output().unwrap();
    assert!(out.status.success(), "{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
}
