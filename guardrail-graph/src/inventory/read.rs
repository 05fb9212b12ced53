//! Reads inventory text: what `kubectl get … -A -o yaml` or `-o json` prints, multi-document YAML,
//! `List`s, or lists as the API server sends them.
//!
//! The reader is total: any text gives objects or one [`InventoryError`]. Limits on nesting,
//! aliases and expansion stay on, so no text can exhaust the machine; limits on plain size grow
//! with the text, because a large cluster is not an attack.

use std::{
    borrow::Cow,
    collections::{BTreeMap, btree_map::Entry},
};

use serde::de::DeserializeSeed;
use serde_saphyr::{Budget, Options, options::DuplicateKeyPolicy};

use super::{
    InventoryError, Object, ObjectKey, complaint,
    complaint::mismatch,
    is_duplicate,
    raw::{Converted, Item, ItemSeed},
};

/// The largest text that is read.
pub const MAX_BYTES: usize = 1 << 30;

/// What aliases may add to any text, and to the largest, in events of the parser (a scalar is one,
/// a list or mapping two and its contents). In between it is as many as the text has bytes, so that
/// reading costs no more than a text twice as long: kubectl writes no aliases, and people share
/// some labels.
const ALIASED_EVENTS: (usize, usize) = (1_000, 1_000_000);

/// What a text holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReadObjects {
    /// The objects, in the order of the text; of equal repetitions one.
    pub objects: Vec<Object>,
    /// What was passed over, one sentence each: kinds that are not read, with their number.
    pub warnings: Vec<String>,
}

/// Reads all objects of a text. `file` is how errors call it.
///
/// # Errors
/// If the text is empty, is not YAML or JSON, holds something that is not a Kubernetes object, an
/// object that the API server would have refused in a field that is read (a pod without name, a bad
/// address or port), or two different objects with one name.
pub fn objects(text: &str, file: &str) -> Result<ReadObjects, InventoryError> {
    if text.len() > MAX_BYTES {
        return Err(InventoryError::TooLarge { file: file.to_owned(), bytes: text.len(), limit: MAX_BYTES });
    }
    let text = &*without_marks(text);
    let mut warnings = Vec::new();
    let items = if is_json(text) { json_items(text, file)? } else { yaml_items(text, file, &mut warnings)? };
    if items.is_empty() {
        return Err(InventoryError::Empty { file: file.to_owned() });
    }
    let mut collected =
        Collected { file, objects: Vec::new(), by_key: BTreeMap::new(), ignored: BTreeMap::new(), warnings };
    for (document, item) in items {
        collected.take(document, item, None, 0)?;
    }
    let Collected { objects, ignored, mut warnings, .. } = collected;
    let told = |(kind, count)| format!("{file}: {count} {kind} ignored: this kind is not read");
    warnings.extend(ignored.into_iter().map(told));
    Ok(ReadObjects { objects, warnings })
}

/// The text without byte order marks at the begin of lines: files from Windows one behind the other
/// have one in the middle, which kubectl reads as well.
#[must_use]
pub fn without_marks(text: &str) -> Cow<'_, str> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.contains("\n\u{feff}") { Cow::Owned(text.replace("\n\u{feff}", "\n")) } else { Cow::Borrowed(text) }
}

/// Reads one object as a watch event or a list item carries it. `kind` is what the list or watch is
/// of, for items that lack it. `None` if it is of a kind that is not read.
///
/// # Errors
/// As [`objects`], with `what` in place of the file.
pub fn object(json: &str, kind: Option<&str>, what: &str) -> Result<Option<Object>, InventoryError> {
    let invalid = |line, message| InventoryError::Invalid { file: what.to_owned(), document: 1, line, message };
    let mut deserializer = serde_json::Deserializer::from_str(json);
    let item = ItemSeed { kind }.deserialize(&mut deserializer).map_err(|e| invalid(e.line(), json_message(&e)))?;
    match item.convert(kind).map_err(|m| invalid(0, m))? {
        Converted::Object(object) => Ok(Some(object)),
        Converted::Ignored(_) => Ok(None),
        Converted::List(_) => Err(invalid(0, "a list where one object was expected".to_owned())),
    }
}

struct Collected<'a> {
    file: &'a str,
    objects: Vec<Object>,
    by_key: BTreeMap<ObjectKey, usize>,
    ignored: BTreeMap<String, usize>,
    warnings: Vec<String>,
}

impl Collected<'_> {
    fn take(&mut self, document: usize, item: Item, kind: Option<&str>, depth: usize) -> Result<(), InventoryError> {
        let line = item.line;
        let invalid = |message| InventoryError::Invalid { file: self.file.to_owned(), document, line, message };
        let of = item.item_kind();
        match item.convert(kind).map_err(invalid)? {
            Converted::Object(object) => {
                let key = object.key();
                match self.by_key.entry(key) {
                    Entry::Vacant(vacant) => {
                        vacant.insert(self.objects.len());
                        self.objects.push(object);
                    }
                    Entry::Occupied(occupied) if self.objects[*occupied.get()] == object => {}
                    Entry::Occupied(occupied) if occupied.key().name.ends_with('*') => {
                        let ObjectKey { kind, .. } = occupied.key();
                        self.warnings.push(format!(
                            "{}: {} {} (generateName) is there twice with different contents: the first is used",
                            self.file,
                            kind.as_str(),
                            occupied.key().full_name()
                        ));
                    }
                    Entry::Occupied(occupied) => {
                        let key = occupied.key();
                        return Err(InventoryError::Conflict {
                            file: self.file.to_owned(),
                            kind: key.kind.as_str().to_owned(),
                            name: key.full_name(),
                        });
                    }
                }
            }
            Converted::List(_) if depth > 4 => {
                return Err(invalid("lists inside lists inside lists: flatten them".to_owned()));
            }
            Converted::List(items) => {
                for item in items {
                    self.take(document, item, of.as_deref(), depth + 1)?;
                }
            }
            Converted::Ignored(kind) if kind == "NetworkPolicy" => {}
            Converted::Ignored(kind) => *self.ignored.entry(kind).or_default() += 1,
        }
        Ok(())
    }
}

/// JSON is read by the JSON reader, which is faster; `{a: b}` is YAML.
fn is_json(text: &str) -> bool {
    let mut significant = text.chars().filter(|c| !c.is_whitespace());
    significant.next() == Some('{') && matches!(significant.next(), Some('"' | '}'))
}

fn json_message(error: &serde_json::Error) -> String {
    if error.is_eof() {
        return "the JSON ends in the middle: fetch or write it again".to_owned();
    }
    // serde_json appends " at line L column C"; the line stands in the error already.
    let text = error.to_string();
    let said = text.rfind(" at line ").map_or(&*text, |at| &text[..at]);
    if said.starts_with("expected `") || said.starts_with("key must be") || said.starts_with("trailing") {
        return format!("not valid JSON: {said}");
    }
    mismatch(said)
}

fn json_items(text: &str, file: &str) -> Result<Vec<(usize, Item)>, InventoryError> {
    let mut items = Vec::new();
    for item in serde_json::Deserializer::from_str(text).into_iter::<Item>() {
        let document = items.len() + 1;
        let item = item.map_err(|e| InventoryError::Invalid {
            file: file.to_owned(),
            document,
            line: e.line(),
            message: json_message(&e),
        })?;
        items.push((document, item));
    }
    Ok(items)
}

fn yaml_items(text: &str, file: &str, warnings: &mut Vec<String>) -> Result<Vec<(usize, Item)>, InventoryError> {
    let read = |keys| serde_saphyr::from_multiple_with_options(text, options(text.len(), keys));
    let refused = |error: serde_saphyr::Error| {
        let line = error.location().map_or(0, |l| usize::try_from(l.line()).unwrap_or(0));
        let message = yaml_message(&error, text, line);
        InventoryError::Invalid { file: file.to_owned(), document: document_at(text, line), line, message }
    };
    let items: Vec<Item> = match read(DuplicateKeyPolicy::Error).map_err(refused) {
        // kubectl and Helm take the last one and say nothing; the rest of a chart is not to blame.
        Err(InventoryError::Invalid { line, message, .. }) if is_duplicate(&message) => {
            let items = read(DuplicateKeyPolicy::LastWins).map_err(refused)?;
            let message =
                message.replace("; keep one of them", ": the last one counts, as for kubectl; keep one of them");
            warnings.push(format!("{file}:{line}: {message}"));
            items
        }
        read => read?,
    };
    Ok(items.into_iter().enumerate().map(|(i, item)| (i + 1, item)).collect())
}

fn yaml_message(error: &serde_saphyr::Error, text: &str, line: usize) -> String {
    let said = error.without_snippet().to_string();
    let said = said.lines().next().unwrap_or_default();
    // The place stands in the error already.
    let said = said.rfind(" at line ").map_or(said, |at| &said[..at]);
    let ours = |known: &str| said.starts_with(known);
    if ours("expected mapping start") && is_first(text, line) {
        return "expected a Kubernetes object (a mapping with apiVersion, kind and metadata)".to_owned();
    }
    let spoken = ["duplicate mapping key", "budget breached", "recursion limit", "mapping values", "tabs disallowed"];
    if spoken.iter().any(|known| ours(known)) {
        return complaint(said, text, u32::try_from(line).unwrap_or(0), None);
    }
    mismatch(said)
}

/// Whether no other line of the document with something on it comes before this one.
fn is_first(text: &str, line: usize) -> bool {
    let before: Vec<&str> = text.lines().take(line.saturating_sub(1)).collect();
    let own = before.iter().rposition(|l| *l == "---" || l.starts_with("--- ")).map_or(0, |at| at + 1);
    before[own..].iter().all(|l| l.trim().is_empty() || l.starts_with('#'))
}

/// The number of the document that holds a line: separators before it, of those that end something.
fn document_at(text: &str, line: usize) -> usize {
    let mut document = 1;
    let mut content = false;
    for current in text.lines().take(line.saturating_sub(1)) {
        if current == "---" || current.starts_with("--- ") {
            document += usize::from(content);
            content = current.len() > 4;
        } else if !current.trim().is_empty() && !current.starts_with('#') {
            content = true;
        }
    }
    document
}

fn options(bytes: usize, keys: DuplicateKeyPolicy) -> Options {
    let mut budget = Budget::default();
    // Every event and every scalar byte of the text itself takes at least a byte of text; what
    // aliases add is limited on its own.
    budget.max_events = budget.max_events.max(bytes);
    budget.max_nodes = budget.max_nodes.max(bytes);
    budget.max_total_scalar_bytes = budget.max_total_scalar_bytes.max(bytes);
    budget.max_documents = budget.max_documents.max(bytes / 4);
    let mut options = Options::default();
    options.budget = Some(budget);
    options.alias_limits.max_total_replayed_events = bytes.clamp(ALIASED_EVENTS.0, ALIASED_EVENTS.1);
    options.with_snippet = false;
    options.duplicate_keys = keys;
    // YAML 1.2, as kubectl prints it: `n`, `yes` and `off` are words.
    options.strict_booleans = true;
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn error(text: &str) -> String {
        objects(text, "inv.yaml").expect_err("must be refused").to_string()
    }

    #[test]
    fn errors_name_file_document_line_and_what_to_do() {
        for (text, expected) in [
            ("", "inv.yaml: the file holds no Kubernetes objects"),
            ("# nothing\n---\n", "inv.yaml: the file holds no Kubernetes objects"),
            ("just text\n", "inv.yaml: document 1, line 1"),
            ("a: b\n", "it has no `kind`"),
            (
                "kind: Namespace\nmetadata: {name: a}\n---\nkind: Pod\nmetadata: {namespace: x}\n",
                "inv.yaml: document 2, line ",
            ),
            ("kind: Pod\nmetadata: {namespace: x}\n", "a Pod without metadata.name"),
            (
                "kind: Pod\nmetadata: {name: x}\nspec: {}\nstatus:\n  podIP: 10.0.0\n",
                "inv.yaml: document 1, line 5: `10.0.0` is not an IP address",
            ),
            ("kind: Service\nmetadata: {name: x}\nspec:\n  ports:\n  - port: 70000\n", "line 5: 70000 is not a port"),
            (
                "{\"kind\": \"Pod\",\n \"metadata\": {\"name\": \"x\"},\n \"status\": {\"podIP\": \"nope\"}}",
                "line 3: `nope` is not an IP address",
            ),
            ("{\"kind\": \"Pod\", \"metadata\": {\"name\"", "line 1: the JSON ends in the middle"),
            ("kind: Pod\nmetadata: {name: x\n", "inv.yaml: document 1, line "),
            (
                "kind: Node\nmetadata: {name: n}\nspec: {podCIDR: 10.0.0.0/64}\n",
                "Node n: spec.podCIDR: `10.0.0.0/64` is not a range",
            ),
        ] {
            let message = error(text);
            assert!(message.contains(expected), "{text:?}\n gave {message:?}\n not {expected:?}");
            assert!(!message.contains('\n'), "one sentence: {message:?}");
        }
    }

    /// An address with a zone, `none` in small letters, what a controller writes while it waits.
    #[test]
    fn what_is_no_address_in_a_service_is_none() {
        let text = "
kind: Service
metadata: {name: lb, namespace: a}
spec:
  clusterIP: 10.96.0.7
  clusterIPs: [10.96.0.7, none]
  externalIPs: ['2001:db8::1%eth0', 1.2.3, 203.0.113.7]
  loadBalancerIP: 10.1.1.5,fd00::5
  ports: [{port: 80}]
status: {loadBalancer: {ingress: [{ip: pending}, {ip: 203.0.113.8}, {hostname: lb.example.com}]}}
";
        let read = objects(text, "f").unwrap();
        let [Object::Service(service)] = &read.objects[..] else { panic!("{:?}", read.objects) };
        assert_eq!(service.cluster_ips, ["10.96.0.7".parse::<std::net::IpAddr>().unwrap()]);
        let expected: Vec<std::net::IpAddr> = vec!["203.0.113.7".parse().unwrap(), "203.0.113.8".parse().unwrap()];
        assert_eq!(service.external_ips, expected);
    }

    #[test]
    fn kinds_of_other_groups_are_not_those_of_kubernetes() {
        let core =
            "apiVersion: v1\nkind: Service\nmetadata: {name: hello, namespace: a}\nspec: {ports: [{port: 80}]}\n";
        let others = [
            "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: hello, namespace: a}\nspec: {template: {}}\n",
            "apiVersion: batch.volcano.sh/v1alpha1\nkind: Job\nmetadata: {name: j, namespace: a}\nspec: {template: [], tasks: []}\n",
            "apiVersion: metal.example/v1\nkind: Node\nmetadata: {name: n}\nspec: {podCIDR: {a: b}}\n",
        ];
        let read = objects(&format!("{core}---\n{}", others.join("---\n")), "f").unwrap();
        assert_eq!(read.objects.len(), 1, "{:?}", read.objects);
        assert_eq!(read.warnings.len(), 3, "{:?}", read.warnings);
    }

    #[test]
    fn workloads_of_openshift_argo_and_kruise_have_templates() {
        let of = |version: &str, kind: &str, selector: &str, template: &str| {
            format!(
                "apiVersion: {version}\nkind: {kind}\nmetadata: {{name: {}, namespace: a}}\nspec: {{selector: {selector}{template}}}\n",
                kind.to_lowercase()
            )
        };
        let template =
            ", template: {metadata: {labels: {app: x}}, spec: {containers: [{ports: [{containerPort: 8080}]}]}}";
        let labels = "{matchLabels: {app: x}}";
        let text = [
            of("apps.openshift.io/v1", "DeploymentConfig", "{app: x}", template),
            of("argoproj.io/v1alpha1", "Rollout", labels, template),
            of("apps.kruise.io/v1alpha1", "CloneSet", labels, template),
        ];
        let read = objects(&text.join("---\n"), "f").unwrap();
        for object in &read.objects {
            let Object::Controller(controller) = object else { panic!("{object:?}") };
            assert_eq!(controller.template_labels.get("app"), Some("x"), "{controller:?}");
            assert_eq!(controller.selector.as_ref().unwrap().match_labels["app"], "x", "{controller:?}");
            assert_eq!(controller.template_ports[0].port, 8080);
        }
        assert_eq!(read.objects.len(), 3);
        let borrowed = of("argoproj.io/v1alpha1", "Rollout", labels, ", workloadRef: {kind: Deployment, name: x}");
        assert!(objects(&borrowed, "f").unwrap().objects.is_empty(), "the Deployment has the template");
    }

    #[test]
    fn a_generated_name_is_told_by_a_star() {
        let job = |app: &str| {
            format!(
                "apiVersion: batch/v1\nkind: Job\nmetadata: {{generateName: run-, namespace: a}}\nspec: {{template: {{metadata: {{labels: {{app: {app}}}}}}}}}\n"
            )
        };
        let read = objects(&format!("{}---\n{}", job("x"), job("y")), "f").unwrap();
        let [Object::Controller(controller)] = &read.objects[..] else { panic!("{:?}", read.objects) };
        assert_eq!((controller.name.as_str(), controller.template_labels.get("app")), ("run-*", Some("x")));
        assert!(read.warnings[0].contains("Job a/run-*"), "{:?}", read.warnings);
    }

    #[test]
    fn a_key_that_stands_twice_is_read_as_kubectl_reads_it_and_told() {
        let text = "kind: ConfigMap\nmetadata: {name: c}\ndata:\n  a: 1\n  a: 2\n---\nkind: Pod\nmetadata:\n  name: p\n  labels:\n    app: old\n    app: new\n";
        let read = objects(text, "f").unwrap();
        let [Object::Pod(pod)] = &read.objects[..] else { panic!("{:?}", read.objects) };
        assert_eq!(pod.labels.get("app"), Some("new"));
        assert!(
            read.warnings[0].contains("the key a stands twice") && read.warnings[0].contains("f:5"),
            "{:?}",
            read.warnings
        );
        let lost = error("kind: Pod\nmetadata: {name: p}\nkind: Pod\nmetadata: {name: q}\n");
        assert!(lost.contains("`---`"), "{lost}");
    }

    #[test]
    fn byte_order_marks_between_files_are_none_of_the_text() {
        let one = "\u{feff}kind: Namespace\nmetadata: {name: a}\n";
        let text = format!("{one}---\n{}", one.replace("name: a", "name: b"));
        assert_eq!(objects(&text, "f").unwrap().objects.len(), 2);
    }

    #[test]
    fn kind_may_come_after_spec_and_after_items() {
        let text = "items:\n- spec: {nodeName: n}\n  metadata: {name: x, namespace: y}\n  status: {podIP: 10.0.0.1}\n  kind: Pod\nkind: List\n";
        let read = objects(text, "f").unwrap();
        let [Object::Pod(pod)] = &read.objects[..] else { panic!("{read:?}") };
        assert_eq!((pod.node.as_deref(), pod.addresses.len()), (Some("n"), 1));
    }

    #[test]
    fn unknown_kinds_of_any_shape_are_counted() {
        let text = "kind: Odd\nspec: [1, 2]\nmetadata: 7\n---\nkind: ConfigMap\nmetadata: {name: a}\nitems: 3\n---\nkind: Namespace\nmetadata: {name: a}\n";
        let read = objects(text, "f").unwrap();
        assert_eq!(read.objects.len(), 1);
        assert_eq!(
            read.warnings,
            ["f: 1 ConfigMap ignored: this kind is not read", "f: 1 Odd ignored: this kind is not read"]
        );
    }

    #[test]
    fn equal_repetitions_are_one_and_different_ones_are_refused() {
        let one = "kind: Namespace\nmetadata: {name: a}\n";
        assert_eq!(objects(&format!("{one}---\n{one}"), "f").unwrap().objects.len(), 1);
        let message = error(&format!("{one}---\nkind: Namespace\nmetadata: {{name: a, labels: {{x: y}}}}\n"));
        assert_eq!(message, "inv.yaml: Namespace a is there twice with different contents: keep one of them");
    }

    #[test]
    #[cfg_attr(miri, ignore = "a large text takes minutes under Miri")]
    fn an_alias_bomb_and_deep_nesting_are_refused() {
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for i in 1..12 {
            let refs = vec![format!("*a{}", i - 1); 10].join(",");
            bomb.push_str(&format!("a{i}: &a{i} [{refs}]\n"));
        }
        bomb.push_str("kind: Pod\n");
        error(&bomb);
        // One level of it is within the limits on nesting and on the text's own events.
        let flat = format!("a: &a [{}]\nb: [{}]\nkind: Pod\n", ["x"; 400].join(","), ["*a"; 10].join(","));
        let message = error(&flat);
        assert!(message.contains("alias"), "{message:?}");
        error(&format!("kind: Pod\nspec: {}{}", "[".repeat(5_000), "]".repeat(5_000)));
        error(&format!("{{\"kind\": \"Pod\", \"spec\": {}", "[".repeat(100_000)));
    }

    #[test]
    #[cfg_attr(miri, ignore = "a large text takes minutes under Miri")]
    fn labels_that_every_object_shares_through_an_alias_are_read() {
        let labels: Vec<String> = (0..15).map(|i| format!("l{i}: v")).collect();
        let labels = labels.join(", ");
        let mut text =
            format!("kind: List\nitems:\n- kind: Namespace\n  metadata: {{name: n, labels: &l {{{labels}}}}}\n");
        for i in 0..90 {
            text.push_str(&format!("- kind: Pod\n  metadata: {{name: p{i}, namespace: n, uid: u{i}, labels: *l}}\n"));
        }
        assert_eq!(objects(&text, "f").unwrap().objects.len(), 91);
    }

    #[test]
    #[cfg_attr(miri, ignore = "a large text takes minutes under Miri")]
    fn a_list_of_ten_thousand_pods_parses() {
        let mut text = "{\"kind\":\"PodList\",\"apiVersion\":\"v1\",\"items\":[".to_owned();
        for i in 0..10_000 {
            if i > 0 {
                text.push(',');
            }
            text.push_str(&format!(
                "{{\"metadata\":{{\"name\":\"p{i}\",\"namespace\":\"n\",\"uid\":\"u{i}\"}},\"spec\":{{\"nodeName\":\"node\",\"containers\":[{{\"ports\":[{{\"containerPort\":80}}]}}]}},\"status\":{{\"podIP\":\"10.0.{}.{}\"}}}}",
                i / 256,
                i % 256
            ));
        }
        text.push_str("]}");
        assert_eq!(objects(&text, "f").unwrap().objects.len(), 10_000);
    }
}
