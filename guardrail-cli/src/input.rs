//! What the command line names: files, `-`, URLs, clusters and directories; read with limits, and
//! turned into snapshots, inventories and policies.

mod kube;
mod span;

use std::{
    collections::{BTreeSet, HashMap, hash_map::Entry},
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use guardrail_graph::{
    Snapshot, Timestamp,
    inventory::{self, Object, ObjectKey},
    snapshot::{
        answer_within, check_revisions, merge_within,
        span::{EVERYTHING, Span},
    },
};
use guardrail_policy::{
    emit::EVIDENCE_FILE,
    memory::KIND,
    read::{Expect, MAX_FILE_BYTES, PolicySet, Reader, decode, may_concern_policies},
};

use guardrail_kube::objects::ClusterText;
use kube::Wanted;
pub(crate) use kube::{KubeArgs, with_api};
pub(crate) use span::{SpanArgs, clock};

use crate::output;

/// Largest snapshot or inventory, bytes.
const MAX_DOCUMENT_BYTES: usize = 1 << 30;
/// How long an agent may take to answer.
const HTTP_TIMEOUT: Duration = Duration::from_secs(30);
/// Deepest directory below a policy directory.
const MAX_DIRECTORY_DEPTH: usize = 32;

/// Of the evidence of an export: so much holds what kind of document it is, bytes.
const EVIDENCE_HEAD: u64 = 4 << 10;

/// Kubernetes objects from `--inventory`.
#[derive(Debug, Default)]
pub(crate) struct Inventory {
    /// The objects.
    pub(crate) objects: Vec<Object>,
    /// The policies among them: what is in force already.
    pub(crate) policies: PolicySet,
}

/// Reads snapshots, and answers from all of them. `cluster` says how to reach the cluster of a
/// `kube[:NAMESPACE]`, `span` which time counts.
pub(crate) fn snapshots(names: &[String], cluster: &KubeArgs, span: &SpanArgs) -> anyhow::Result<Snapshot> {
    joined(sources(names, cluster)?, span, cluster.now())
}

/// Reads snapshots, and merges them: they can be merged again.
pub(crate) fn merged(names: &[String], cluster: &KubeArgs, span: &SpanArgs) -> anyhow::Result<Snapshot> {
    let (all, span) = checked(sources(names, cluster)?, span, cluster.now())?;
    Ok(merge_within(all, &span))
}

fn sources(names: &[String], cluster: &KubeArgs) -> anyhow::Result<Vec<Snapshot>> {
    let mut all = Vec::new();
    for name in names {
        all.extend(source(name, cluster)?);
    }
    Ok(all)
}

/// What snapshots say together of the span that is asked about.
pub(crate) fn joined(all: Vec<Snapshot>, args: &SpanArgs, now: Timestamp) -> anyhow::Result<Snapshot> {
    let (all, span) = checked(all, args, now)?;
    // One snapshot is joined too, so that what is printed does not depend on how it was written.
    Ok(answer_within(all, &span))
}

/// Snapshots that can be joined, with what a person says of nodes, and the span.
fn checked(mut all: Vec<Snapshot>, args: &SpanArgs, now: Timestamp) -> anyhow::Result<(Vec<Snapshot>, Span)> {
    let span = args.span(now)?;
    span::check(&span, &all)?;
    check_revisions(&all)?;
    args.tell_unobservable(&mut all);
    Ok((all, span))
}

/// What one SNAPSHOT argument gives: one for each epoch, where these are apart.
pub(crate) fn source(name: &str, cluster: &KubeArgs) -> anyhow::Result<Vec<Snapshot>> {
    if let Some(namespace) = kube::namespace(name)? {
        return kube::snapshots(namespace, cluster);
    }
    let text = text(name, MAX_DOCUMENT_BYTES)?;
    let snapshots = Snapshot::parts_from_json(&text, shown(name))?;
    snapshots.iter().try_for_each(|snapshot| snapshot.check_times().with_context(|| shown(name).to_owned()))?;
    Ok(snapshots)
}

/// Reads the objects of all inventory files. `facts`: also what only policies of some kinds ask of
/// them, which takes longer.
pub(crate) fn inventory(paths: &[PathBuf], cluster: &KubeArgs, facts: bool) -> anyhow::Result<Inventory> {
    let mut loaded = Inventory::default();
    let mut reader = Reader::new();
    let mut left_out = BTreeSet::new();
    let mut known: HashMap<ObjectKey, (usize, Arc<str>)> = HashMap::new();
    for path in paths {
        if kube::is_cluster(path) {
            let [policies, objects] = kube::objects(Wanted::Everything, cluster)?;
            for text in policies {
                reader.add(&named(&text), text.json.as_bytes(), Expect::Inventory);
            }
            for text in objects {
                if facts {
                    reader.add(&named(&text), text.json.as_bytes(), Expect::Inventory);
                }
                let name: Arc<str> = named(&text).into();
                for object in inventory::read::objects(&text.json, &name)?.objects {
                    take(&mut loaded, &mut known, object, &name)?;
                }
            }
            continue;
        }
        let mut found = false;
        for (file, _) in files(path)? {
            let name = file.to_string_lossy();
            let text = text(&name, MAX_DOCUMENT_BYTES)?;
            // Reading policies keeps every line; a large inventory without any is spared that.
            if facts || may_concern_policies(&text) {
                reader.add(shown(&name), text.as_bytes(), Expect::Inventory);
            }
            let read = match inventory::read::objects(&text, shown(&name)) {
                // What a user names is an inventory; what lies in a directory may be anything.
                Err(error) if path.is_dir() && (error.holds_no_object() || text.contains("{{")) => {
                    left_out.insert(shown(&name).to_owned());
                    continue;
                }
                read => read?,
            };
            found = true;
            for warning in read.warnings {
                tell("warning", &warning);
            }
            let file: Arc<str> = shown(&name).into();
            for object in read.objects {
                take(&mut loaded, &mut known, object, &file)?;
            }
        }
        if !found {
            let path = path.display();
            bail!("{path}: no YAML or JSON file below this directory holds a Kubernetes object; name another one");
        }
    }
    loaded.policies = reader.finish()?;
    tell_left_out(&left_out);
    Ok(loaded)
}

/// An object of one of the inputs; the same one may be in several.
fn take(
    loaded: &mut Inventory,
    known: &mut HashMap<ObjectKey, (usize, Arc<str>)>,
    object: Object,
    file: &Arc<str>,
) -> anyhow::Result<()> {
    match known.entry(object.key()) {
        Entry::Vacant(new) => {
            new.insert((loaded.objects.len(), Arc::clone(file)));
            loaded.objects.push(object);
        }
        // Two views of one cluster share most objects.
        Entry::Occupied(old) if loaded.objects[old.get().0] == object => {}
        // Which of the two is true nobody can tell, and verdicts would follow the order of the
        // arguments.
        Entry::Occupied(old) => {
            let ObjectKey { kind, .. } = old.key();
            let (kind, name, first) = (kind.as_str(), old.key().full_name(), &old.get().1);
            bail!("{kind} {name} is in {first} and in {file} with different contents: keep one of them");
        }
    }
    Ok(())
}

/// The files of `--inventory`, or what the cluster has, as texts with their names.
pub(crate) fn texts(paths: &[PathBuf], cluster: &KubeArgs) -> anyhow::Result<Vec<(String, String)>> {
    let mut all = Vec::new();
    for path in paths {
        if kube::is_cluster(path) {
            let [_, objects] = kube::objects(Wanted::Everything, cluster)?;
            all.extend(objects.into_iter().map(|part| (named(&part), part.json)));
            continue;
        }
        for (file, _) in files(path)? {
            let name = file.to_string_lossy();
            all.push((shown(&name).to_owned(), text(&name, MAX_DOCUMENT_BYTES)?));
        }
    }
    Ok(all)
}

/// How messages call a part of the cluster.
fn named(text: &ClusterText) -> String {
    format!("kube {}", text.what)
}

/// Reads the policies of files, directories and the cluster; warns of unknown fields.
pub(crate) fn policies(paths: &[PathBuf], cluster: &KubeArgs) -> anyhow::Result<PolicySet> {
    let mut set = policy_reader(paths, cluster)?.finish()?;
    set.live = !paths.is_empty() && paths.iter().all(|path| kube::is_cluster(path));
    tell_left_out(&set.left_out.iter().cloned().collect());
    for warning in &set.warnings {
        tell("warning", warning);
    }
    Ok(set)
}

/// One line for the files of directories that hold no Kubernetes object.
pub(crate) fn tell_left_out(files: &BTreeSet<String>) {
    if files.is_empty() {
        return;
    }
    let some: Vec<&str> = files.iter().take(3).map(String::as_str).collect();
    let more = if files.len() > 3 { ", …" } else { "" };
    let (word, was) = if files.len() == 1 { ("file holds", "was") } else { ("files hold", "were") };
    let names = some.join(", ");
    tell("note", &format!("{} {word} no Kubernetes object and {was} left out: {names}{more}", files.len()));
}

/// Reads the policies of files, directories and the cluster, valid or not.
pub(crate) fn policy_reader(paths: &[PathBuf], cluster: &KubeArgs) -> anyhow::Result<Reader> {
    let mut reader = Reader::new();
    for path in paths {
        if kube::is_cluster(path) {
            let [policies, _] = kube::objects(Wanted::Policies, cluster)?;
            for text in policies {
                reader.add(&named(&text), text.json.as_bytes(), Expect::Inventory);
            }
            continue;
        }
        for (file, expect) in files(path)? {
            let name = file.to_string_lossy();
            // One byte more than the limit, so that the reader sees that there is more.
            let bytes = bytes(&name, MAX_FILE_BYTES + 1)?;
            reader.add(shown(&name), &bytes, expect);
        }
    }
    Ok(reader)
}

/// The file itself, or the YAML and JSON files below a directory, sorted; hidden files and
/// directories are left out, and so is the evidence of an export, which may be large and is no
/// policy.
fn files(path: &Path) -> anyhow::Result<Vec<(PathBuf, Expect)>> {
    if path.as_os_str() == "-" || !path.is_dir() {
        return Ok(vec![(path.to_path_buf(), Expect::Policies)]);
    }
    let mut found = Vec::new();
    walk(path, 0, &mut found)?;
    found.sort();
    Ok(found.into_iter().map(|file| (file, Expect::Anything)).collect())
}

/// Whether an export wrote this file: it says so at its beginning.
fn is_evidence(path: &Path) -> bool {
    let mut head = Vec::new();
    let read = File::open(path).and_then(|file| file.take(EVIDENCE_HEAD).read_to_end(&mut head));
    read.is_ok() && String::from_utf8_lossy(&head).contains(&format!("\"kind\": \"{KIND}\""))
}

fn walk(directory: &Path, depth: usize, found: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    if depth > MAX_DIRECTORY_DEPTH {
        bail!("{}: more than {MAX_DIRECTORY_DEPTH} directories deep; is there a loop of links?", directory.display());
    }
    let entries =
        std::fs::read_dir(directory).with_context(|| format!("cannot read directory {}", directory.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot read directory {}", directory.display()))?;
        let name = entry.file_name();
        let path = entry.path();
        if name.to_string_lossy().starts_with('.') || name == EVIDENCE_FILE && is_evidence(&path) {
            continue;
        }
        if path.is_dir() {
            walk(&path, depth + 1, found)?;
        } else if path
            .extension()
            .is_some_and(|e| ["yaml", "yml", "json"].iter().any(|known| e.eq_ignore_ascii_case(known)))
        {
            found.push(path);
        }
    }
    Ok(())
}

fn text(name: &str, limit: usize) -> anyhow::Result<String> {
    let bytes = bytes(name, limit + 1)?;
    if bytes.len() > limit {
        bail!("{}:1: more than {} MiB; split it", shown(name), limit >> 20);
    }
    // The same bytes where they are UTF-8 already: a large file is not copied.
    let bytes = match String::from_utf8(bytes) {
        Ok(text) => return Ok(text),
        Err(error) => error.into_bytes(),
    };
    decode(&bytes).map(std::borrow::Cow::into_owned).map_err(|valid| {
        let line = bytes[..valid].iter().filter(|b| **b == b'\n').count() + 1;
        anyhow::anyhow!("{}:{line}: this is no text (neither UTF-8 nor UTF-16); name a YAML or JSON file", shown(name))
    })
}

/// At most `limit` bytes of a file, of stdin (`-`), or of what a URL gives.
pub(crate) fn bytes(name: &str, limit: usize) -> anyhow::Result<Vec<u8>> {
    let limit = limit as u64;
    let mut bytes = Vec::new();
    if name == "-" {
        std::io::stdin().lock().take(limit).read_to_end(&mut bytes).context("cannot read stdin")?;
    } else if name.starts_with("http://") || name.starts_with("https://") {
        let config = ureq::Agent::config_builder().timeout_global(Some(HTTP_TIMEOUT)).user_agent("guardrail").build();
        let url = match name.strip_suffix("/v1/graph") {
            Some(agent) => format!("{agent}{EVERYTHING}"),
            None => name.to_owned(),
        };
        let response =
            ureq::Agent::new_with_config(config).get(url).call().with_context(|| format!("cannot get {name}"))?;
        response
            .into_body()
            .into_reader()
            .take(limit)
            .read_to_end(&mut bytes)
            .with_context(|| format!("cannot read {name}"))?;
    } else {
        let file = File::open(name).with_context(|| format!("cannot read {name}"))?;
        file.take(limit).read_to_end(&mut bytes).with_context(|| format!("cannot read {name}"))?;
    }
    Ok(bytes)
}

/// How messages call an input.
pub(crate) fn shown(name: &str) -> &str {
    if name == "-" { "stdin" } else { name }
}

/// A line on stderr: `warning: …`.
pub(crate) fn tell(severity: &str, message: &dyn std::fmt::Display) {
    anstream::eprintln!("{severity}: {}", output::plain(&message.to_string()));
}
