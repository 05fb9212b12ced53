//! What the reader accepts, refuses and warns of.

use super::*;

fn spec(spec: &str) -> String {
    format!("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p}}\nspec:\n  {spec}\n")
}

/// The first problem.
#[track_caller]
fn refused(text: &str) -> ObjectProblem {
    match policies("f.yaml", text.as_bytes()) {
        Ok(set) => panic!("accepted: {set:?}\n{text}"),
        Err(error) => error.problems[0].clone(),
    }
}

#[test]
fn what_the_api_server_rejects_is_refused_with_its_line() {
    let cases = [
        ("ingress: [{from: [{}]}]", "names no peer"),
        ("ingress: [{from: [null]}]", "names no peer"),
        ("ingress: [{from: [{podSelector: null}]}]", "names no peer"),
        ("ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}]}]", "ipBlock beside a selector"),
        ("ingress: [{from: [{ipBlock: {}}]}]", "lacks `cidr`"),
        ("ingress: [{from: [{ipBlock: {cidr: 10.0.0.300/8}}]}]", "no valid CIDR"),
        ("ingress: [{from: [{ipBlock: {cidr: 10.0.0.1}}]}]", "write 10.0.0.1/32"),
        ("ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/33}}]}]", "no valid CIDR"),
        ("ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}]}]", "not inside"),
        ("ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}]}]", "not inside"),
        ("ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/16, except: [10.0.0.0/8]}}]}]", "not inside"),
        ("ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [\"fd00::/64\"]}}]}]", "not inside"),
        ("ingress: [{ports: [{port: 0}]}]", "from 1 to 65535"),
        ("ingress: [{ports: [{port: 70000}]}]", "from 1 to 65535"),
        ("ingress: [{ports: [{port: -1}]}]", "from 1 to 65535"),
        ("ingress: [{ports: [{port: 80.5}]}]", "a fraction"),
        ("ingress: [{ports: [{port: true}]}]", "a boolean"),
        ("ingress: [{ports: [{port: HTTP}]}]", "no valid port name"),
        ("ingress: [{ports: [{port: a-name-that-is-too-long}]}]", "no valid port name"),
        ("ingress: [{ports: [{protocol: tcp}]}]", "in capitals"),
        ("ingress: [{ports: [{protocol: ICMP}]}]", "TCP, UDP or SCTP"),
        ("ingress: [{ports: [{endPort: 90}]}]", "endPort without port"),
        ("ingress: [{ports: [{port: http, endPort: 90}]}]", "a range needs a number"),
        ("ingress: [{ports: [{port: 90, endPort: 80}]}]", "less than port"),
        ("ingress: [{ports: [{port: 90, endPort: \"91\"}]}]", "from 1 to 65535"),
        ("ingress: [{ports: 80}]", "is a list"),
        ("ingress: {from: []}", "is a list"),
        ("ingress: [from]", "is a mapping"),
        ("policyTypes: [ingress]", "write Ingress or Egress"),
        ("policyTypes: [Ingress, Egress, Ingress]", "more than two"),
        ("podSelector: app", "is a mapping"),
        ("podSelector: {matchLabels: {app: 1}}", "labels are strings"),
        ("podSelector: {matchLabels: {app: yes}}", "labels are strings"),
        ("podSelector: {matchLabels: {app: on}}", "labels are strings"),
        ("podSelector: {matchLabels: {app: 1_000}}", "labels are strings"),
        ("podSelector: {matchLabels: {app: \"a b\"}}", "no valid value"),
        ("podSelector: {matchLabels: {\"-a\": b}}", "no valid label key"),
        ("podSelector: {matchLabels: {a/b/c: b}}", "no valid label key"),
        ("podSelector: {matchExpressions: [{key: a, operator: Is}]}", "write In, NotIn"),
        ("podSelector: {matchExpressions: [{key: a, operator: In}]}", "add at least one"),
        ("podSelector: {matchExpressions: [{key: a, operator: NotIn, values: []}]}", "add at least one"),
        ("podSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}", "remove the values"),
        ("podSelector: {matchExpressions: [{operator: Exists}]}", "lacks `key`"),
    ];
    for (text, expected) in cases {
        let problem = refused(&spec(text));
        assert_eq!(problem.kind, ObjectProblemKind::Invalid, "{text}: {problem}");
        assert!(problem.to_string().starts_with("f.yaml:5: default/p: "), "{text}: {problem}");
        assert!(problem.message.contains(expected), "{text}: {problem}");
    }
}

#[test]
fn a_quoted_port_is_a_name_and_not_coerced() {
    let problem = refused(&spec("ingress: [{ports: [{port: \"80\"}]}]"));
    assert_eq!(problem.kind, ObjectProblemKind::QuotedPort);
    assert!(problem.to_string().starts_with("f.yaml:5: default/p: "), "{problem}");
}

#[test]
fn values_that_only_look_special_are_strings() {
    let set =
        policies("f.yaml", spec("podSelector: {matchLabels: {a: y, b: \"on\", c: \"1\", d: null, e: n}}").as_bytes())
            .unwrap();
    let labels: Vec<&str> = set.policies[0].pod_selector.match_labels.values().map(String::as_str).collect();
    assert_eq!(labels, ["y", "on", "1", "", "n"]);
}

#[test]
fn problems_of_all_policies_are_told_at_once_with_their_own_lines() {
    let text = format!(
        "{}---\n{}",
        spec("ingress: [{ports: [{port: 0}]}]"),
        spec("\n  ingress:\n  - ports:\n    - port: 99999")
    );
    let error = policies("f.yaml", text.as_bytes()).unwrap_err();
    let lines: Vec<u32> = error.problems.iter().map(|p| p.location.line).collect();
    assert_eq!(lines, [5, 14], "{error}");
}

#[test]
fn unknown_fields_warn_and_say_which_was_meant() {
    let set =
        policies("f.yaml", spec("ingress: [{from: [{podSelector: {}, namespaceselector: {}}]}]").as_bytes()).unwrap();
    let warning = &set.warnings[0];
    assert_eq!((warning.kind, warning.location.line), (ObjectProblemKind::UnknownField, 5));
    assert!(warning.message.ends_with("did you mean `namespaceSelector`?"), "{warning}");
    assert_eq!(set.policies.len(), 1);
}

#[test]
fn lists_json_and_several_documents_are_opened() {
    let item = r#"{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"j","namespace":"x"},"spec":{}}"#;
    let raw = r#"{"metadata":{"name":"r","namespace":"x"},"spec":{}}"#;
    let text = format!(
        "# nothing\n---\n---\n{}---\n{{\"apiVersion\":\"v1\",\"kind\":\"List\",\"items\":[{item}]}}\n---\n{{\"apiVersion\":\"networking.k8s.io/v1\",\"kind\":\"NetworkPolicyList\",\"items\":[{raw}]}}\n",
        spec("{}")
    );
    let set = policies("f.yaml", text.as_bytes()).unwrap_or_else(|e| panic!("{e}"));
    let names: Vec<String> = set.policies.iter().map(NetworkPolicy::key).collect();
    assert_eq!(names, ["default/p", "x/j", "x/r"]);
}

#[test]
fn an_empty_file_means_no_policies() {
    for text in ["", "\n", "# comment\n", "---\n", "---\n---\n", "apiVersion: v1\nkind: List\nitems: []\n"] {
        let set = policies("f.yaml", text.as_bytes()).unwrap_or_else(|e| panic!("{text:?}: {e}"));
        assert!(set.policies.is_empty(), "{text:?}");
    }
}

#[test]
fn the_same_policy_twice_is_one_and_two_different_ones_conflict() {
    let twice = format!("{}---\n{}", spec("{}"), spec("{}"));
    assert_eq!(policies("f.yaml", twice.as_bytes()).unwrap().policies.len(), 1);
    let problem = refused(&format!("{}---\n{}", spec("{}"), spec("ingress: [{}]")));
    assert_eq!((problem.kind, problem.location.line), (ObjectProblemKind::Conflict, 7));
}

#[test]
fn policies_that_nobody_evaluates_are_named() {
    let object =
        |version: &str, kind: &str| format!("---\napiVersion: {version}\nkind: {kind}\nmetadata: {{name: n}}\n");
    let kinds = [
        ("policy.networking.k8s.io/v1alpha9", "ClusterNetworkPolicy"),
        ("crd.antrea.io/v1beta1", "ClusterNetworkPolicy"),
        ("projectcalico.org/v3", "NetworkPolicy"),
        ("crd.projectcalico.org/v1", "GlobalNetworkPolicy"),
    ];
    for (version, kind) in kinds {
        let set = policies("f.yaml", object(version, kind).as_bytes()).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(set.unevaluated.len(), 1, "{version} {kind}");
        assert_eq!(set.unevaluated[0].to_string(), format!("{kind} n (f.yaml:2)"));
    }
}

#[test]
fn policies_of_other_dialects_are_read_and_what_their_api_refuses_is_told() {
    let read = |version: &str, kind: &str, spec: &str| {
        let text = format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: default}}\nspec: {spec}\n");
        policies("f.yaml", text.as_bytes())
    };
    let (alpha1, alpha2, cilium) =
        ("policy.networking.k8s.io/v1alpha1", "policy.networking.k8s.io/v1alpha2", "cilium.io/v2");
    let subject = "subject: {namespaces: {}}";
    for (version, kind, spec) in [
        (alpha1, "AdminNetworkPolicy", format!("{{priority: 0, {subject}}}")),
        (alpha1, "BaselineAdminNetworkPolicy", format!("{{{subject}}}")),
        (alpha2, "ClusterNetworkPolicy", format!("{{tier: Baseline, priority: 1000, {subject}}}")),
        (cilium, "CiliumNetworkPolicy", "{endpointSelector: {}, ingress: [{}]}".to_owned()),
        (cilium, "CiliumClusterwideNetworkPolicy", "{nodeSelector: {}, egressDeny: [{}]}".to_owned()),
    ] {
        let set = read(version, kind, &spec).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!((set.forms.len(), set.unevaluated.len()), (1, 0), "{kind}");
        assert_eq!(set.forms[0].kind.as_str(), kind);
    }
    let peer = "from: [{namespaces: {}}]";
    for (version, kind, spec, says) in [
        (alpha1, "AdminNetworkPolicy", format!("{{priority: 1001, {subject}}}"), "from 0 to 1000"),
        (
            alpha1,
            "AdminNetworkPolicy",
            format!("{{priority: 1, {subject}, ingress: [{{action: Accept, {peer}}}]}}"),
            "write Allow",
        ),
        (
            alpha1,
            "BaselineAdminNetworkPolicy",
            format!("{{{subject}, ingress: [{{action: Pass, {peer}}}]}}"),
            "write Allow or Deny",
        ),
        (alpha2, "ClusterNetworkPolicy", format!("{{priority: 1, {subject}}}"), "lacks `tier`"),
        (
            alpha2,
            "ClusterNetworkPolicy",
            format!("{{tier: Admin, priority: 1, {subject}, ingress: [{{action: Accept, from: []}}]}}"),
            "at least one peer",
        ),
        (
            alpha2,
            "ClusterNetworkPolicy",
            format!("{{tier: Admin, priority: 1, {subject}, ingress: [{{action: Accept}}]}}"),
            "at least one peer",
        ),
        (
            alpha2,
            "ClusterNetworkPolicy",
            "{tier: Admin, priority: 1, subject: {}}".to_owned(),
            "exactly one of namespaces and pods",
        ),
        (
            alpha2,
            "ClusterNetworkPolicy",
            format!(
                "{{tier: Admin, priority: 1, {subject}, egress: [{{action: Deny, to: [{{domainNames: [a.example]}}]}}]}}"
            ),
            "only be accepted",
        ),
        (
            alpha2,
            "ClusterNetworkPolicy",
            format!(
                "{{tier: Admin, priority: 1, {subject}, ingress: [{{action: Deny, from: [{{networks: [10.0.0.0/8]}}]}}]}}"
            ),
            "no field `networks`",
        ),
        (cilium, "CiliumNetworkPolicy", "{endpointSelector: {}}".to_owned(), "has no rule"),
        (cilium, "CiliumNetworkPolicy", "{endpointSelector: {}, ingress: []}".to_owned(), "has no rule"),
        (cilium, "CiliumNetworkPolicy", "{nodeSelector: {}, ingress: [{}]}".to_owned(), "Clusterwide"),
        (cilium, "CiliumNetworkPolicy", "{ingress: [{}]}".to_owned(), "needs endpointSelector or nodeSelector"),
        (
            cilium,
            "CiliumNetworkPolicy",
            "{endpointSelector: {}, egressDeny: [{toFQDNs: [{matchName: a.example}]}]}".to_owned(),
            "knows no names",
        ),
        (
            cilium,
            "CiliumNetworkPolicy",
            "{endpointSelector: {}, egress: [{toPorts: [{ports: [{port: 80}]}]}]}".to_owned(),
            "in quotes",
        ),
        (
            cilium,
            "CiliumNetworkPolicy",
            "{endpointSelector: {}, ingress: [{fromEndpoint: [{}]}]}".to_owned(),
            "no field `fromEndpoint`",
        ),
        (
            cilium,
            "CiliumNetworkPolicy",
            "{endpointSelector: {}, egress: [{toCIDRSet: [{cidr: 10.0.0.0/8, except: [11.0.0.0/16]}]}]}".to_owned(),
            "not inside",
        ),
    ] {
        let error = read(version, kind, &spec).expect_err(&spec).to_string();
        assert!(error.contains(says) && error.starts_with("f.yaml:"), "{spec}: {error}");
    }
}

#[test]
fn objects_that_are_no_policies_are_wrong_in_a_policy_file_and_passed_over_elsewhere() {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\n";
    for text in [
        pod,
        "just text\n",
        "- a\n",
        "kind: NetworkPolicy\n",
        "apiVersion: extensions/v1beta1\nkind: NetworkPolicy\n",
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolice\n",
    ] {
        assert_eq!(refused(text).kind, ObjectProblemKind::WrongKind, "{text}");
    }
    let mut reader = Reader::new();
    reader.add("values.yaml", b"replicas: 3\n", Expect::Anything);
    reader.add("pod.yaml", pod.as_bytes(), Expect::Anything);
    assert_eq!(reader.finish().unwrap().others.get("Pod"), Some(&1));
}

#[test]
fn hostile_files_are_refused_with_a_line_and_quickly() {
    let started = std::time::Instant::now();
    let mut bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n".to_owned();
    for (name, before) in ["b", "c", "d", "e", "f", "g", "h", "i"].iter().zip(["a", "b", "c", "d", "e", "f", "g", "h"])
    {
        bomb.push_str(&format!("{name}: &{name} [{}]\n", vec![format!("*{before}"); 9].join(",")));
    }
    let nested: String = (0..5_000).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
    let cases: Vec<(Vec<u8>, u32)> = vec![
        (bomb.into_bytes(), 2),
        (vec![b'['; 100_000], 1),
        (format!("a: {}", "{a: ".repeat(50_000)).into_bytes(), 1),
        (nested.into_bytes(), 2),
        (b"a: b\n\x00\x01".to_vec(), 2),
        (b"a: b\nc: \xff\xfe".to_vec(), 2),
        (b"\x7fELF\x02\x01\x01".to_vec(), 1),
        (b"a: [1\nb: 2\n".to_vec(), 1),
        (b"a: 1\na: 2\n".to_vec(), 2),
        (b"a: *nowhere\n".to_vec(), 1),
        (vec![b'#'; MAX_FILE_BYTES + 1], 1),
    ];
    for (bytes, at_least) in cases {
        let head = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned();
        let error = policies("f.yaml", &bytes).expect_err(&head);
        let problem = &error.problems[0];
        assert_eq!(problem.kind, ObjectProblemKind::Syntax, "{head}: {problem}");
        assert!(problem.location.line >= at_least, "{head}: {problem}");
        assert!(!problem.message.contains('\n') && problem.message.len() < 300, "{head}: {problem}");
    }
    assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
}

proptest::proptest! {
    #[test]
    fn any_bytes_give_policies_or_problems_with_a_line(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
        if let Err(error) = policies("f.yaml", &bytes) {
            proptest::prop_assert!(error.problems.iter().all(|p| p.location.line > 0));
        }
    }

    #[test]
    fn any_change_of_one_character_is_survived(at in 0usize..400, with in "[\\[\\]{}:,&*\"' \n\t|>-]") {
        let mut text = spec("podSelector: {matchLabels: {app: web}}\n  ingress:\n  - from:\n    - ipBlock: {cidr: 10.0.0.0/8}\n    ports:\n    - {port: 80}");
        let at = at % text.len();
        text.replace_range(at..=at, &with);
        if let Err(error) = policies("f.yaml", text.as_bytes()) {
            proptest::prop_assert!(error.problems.iter().all(|p| p.location.line > 0 && p.location.line < 15));
        }
    }
}

#[test]
fn when_a_policy_was_changed_is_what_the_api_server_says() {
    let changed = |metadata: &str| {
        let text = format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, {metadata}}}\nspec: {{}}\n"
        );
        let set = policies("p.yaml", text.as_bytes()).unwrap();
        let key = set.policies[0].clone();
        let key = (PolicyKind::NetworkPolicy, key.namespace, key.name);
        set.changed.get(&key).map(ToString::to_string)
    };
    let created = "namespace: shop, creationTimestamp: \"2026-03-01T10:00:00Z\"";
    assert_eq!(changed(&format!("{created}, generation: 1")).as_deref(), Some("2026-03-01T10:00:00Z"));
    let fields = "managedFields: [{time: 2026-03-01T10:00:00Z}, {time: 2026-03-02T10:00:00Z}, {time: 2026-03-03T10:00:00Z, subresource: status}]";
    assert_eq!(changed(&format!("{created}, generation: 2, {fields}")).as_deref(), Some("2026-03-02T10:00:00Z"));
    // A change that was cut out of the metadata, and a file that no cluster has seen.
    assert_eq!(changed(&format!("{created}, generation: 2")), None);
    assert_eq!(changed("namespace: shop, creationTimestamp: null"), None);
    assert_eq!(changed("namespace: shop"), None);
    // Without a namespace it is the default one, as for the policy itself.
    let default = "creationTimestamp: \"2026-03-01T10:00:00Z\", generation: 1";
    assert_eq!(changed(default).as_deref(), Some("2026-03-01T10:00:00Z"));
}

#[test]
fn a_refusal_says_what_to_write_instead() {
    let cases = [
        ("ingress: [{ports: [{port: 8000-9000}]}]", "`port: 8000` and `endPort: 9000`"),
        ("ingress: [{ports: [{port: \"8000:9000\"}]}]", "`port: 8000` and `endPort: 9000`"),
        ("ingress: [{ports: [{port: 'map[containerPort:80 name:a]'}]}]", "a template prints"),
        ("ingress: [{ports: [{port: 90, endPort: \"91\"}]}]", "remove the quotes"),
        ("ingress: {from: []}", "begin its first line with `- `"),
        ("policyTypes: Ingress", "write [Ingress]"),
        ("podSelector: [{matchLabels: {a: b}}]", "remove the `-`"),
        ("egress: [{to: [{ipBlock: {cidr: example.com}}]}]", "knows no names"),
        ("egress: [{to: [{ipBlock: {cidr: \"10.0.0.0/8 \"}}]}]", "remove the blank"),
        ("egress: [{to: [{ipBlock: {cidr: 10.0.0.1-10.0.0.9}}]}]", "one or more CIDRs"),
        ("egress: [{to: [{ipBlock: {cidr: \"10.0.0.0/8,11.0.0.0/8\"}}]}]", "one ipBlock for each"),
        ("egress: [{to: [{ipBlock: {cidr: [10.0.0.0/8]}}]}]", "one ipBlock for each"),
        ("egress: [{to: [{ipBlock: {cidr: 010.0.0.1}}]}]", "write 10.0.0.1/32"),
        ("podSelector:\u{a0}{}", "non-breaking space"),
    ];
    for (text, expected) in cases {
        let problem = refused(&spec(text));
        assert!(problem.message.contains(expected), "{text}: {problem}");
    }
    let twice = format!("{0}{0}", spec("podSelector: {}"));
    assert!(refused(&twice).message.contains("separate two objects by a line `---`"));
}

#[test]
fn numbers_are_read_as_kubectl_reads_them() {
    for (text, port) in
        [("80.0", 80), ("1e3", 1000), ("0120", 80), ("0o120", 80), ("0x50", 80), ("8_080", 8080), ("08080", 8080)]
    {
        let set = policies("f", spec(&format!("ingress: [{{ports: [{{port: {text}}}]}}]")).as_bytes()).unwrap();
        let read = &set.policies[0].ingress[0].ports[0].port;
        assert_eq!(*read, crate::model::PortMatch::Range { first: port, last: port }, "{text}");
    }
    let json = r#"{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "p"}, "spec": {"ingress": [{"ports": [{"port": 8e1}]}]}}"#;
    assert_eq!(policies("f", json.as_bytes()).unwrap().policies.len(), 1);
}

#[test]
fn a_generated_name_is_told_by_a_star_and_conflicts_with_none() {
    let with = |name: &str, rest: &str| spec(rest).replace("name: p", name);
    let one = with("generateName: p-", "podSelector: {}");
    let other = with("generateName: p-", "policyTypes: [Egress]");
    let set = policies("f", format!("{one}---\n{other}---\n{one}").as_bytes()).unwrap();
    let names: Vec<&str> = set.policies.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names, ["p-*", "p-**"]);
    assert!(refused(&with("generateName: P_", "podSelector: {}")).message.contains("no valid name"));
    assert!(refused(&with("name: p*", "podSelector: {}")).message.contains("no valid name"));
}

#[test]
fn a_key_twice_stops_the_policies_that_have_it_and_no_others() {
    let map = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata:\n  a: 1\n  a: 2\n";
    let text = format!("{map}---\n{}", spec("podSelector: {}"));
    assert!(refused(&text).message.contains("the key a stands twice"), "a file that was named as policies");
    let read = |text: &str| {
        let mut reader = Reader::new();
        reader.add("f", text.as_bytes(), Expect::Anything);
        reader.finish()
    };
    let set = read(&text).unwrap();
    assert_eq!((set.policies[0].location.as_ref().unwrap().line, set.others["ConfigMap"]), (8, 1));
    let twice = format!("{text}---\n{}  podSelector: {{}}\n", spec("podSelector: {}"));
    let problem = read(&twice).unwrap_err().problems.remove(0);
    assert_eq!((problem.location.line, problem.kind), (19, ObjectProblemKind::Syntax));
    assert!(problem.message.contains("(lines 18 and 19)"), "{problem}");
}

#[test]
fn files_one_behind_the_other_may_each_have_a_byte_order_mark() {
    let text =
        format!("\u{feff}{}---\n\u{feff}{}", spec("podSelector: {}"), spec("podSelector: {}").replace(": p", ": q"));
    assert_eq!(policies("f", text.as_bytes()).unwrap().policies.len(), 2);
}

#[test]
fn what_a_misplaced_field_means_is_told() {
    let cases = [
        ("egress: [{from: [{podSelector: {}}]}]", "did you mean `to`?"),
        ("ingress: [{to: [{podSelector: {}}]}]", "did you mean `from`?"),
        ("podSelector: {app: web}", "labels belong under `matchLabels`"),
        ("ingress: [{from: [{podSelector: {}, matchLabels: {a: b}}]}]", "indented further"),
        ("ingress: [{from: [{ipBlock: {cidr: \"::ffff:10.0.0.0/104\"}}]}]", "write 10.0.0.0/8"),
        ("ingress: [{from: [{ipBlock: {cidr: \"::FFFF:10.0.0.0/104\"}}]}]", "write 10.0.0.0/8"),
    ];
    for (text, expected) in cases {
        let set = policies("f", spec(text).as_bytes()).unwrap();
        assert!(set.warnings.iter().any(|w| w.message.contains(expected)), "{text}: {:?}", set.warnings);
    }
}
