//! The strict policy reader: text as kubectl takes it in, validated [`NetworkPolicy`] objects out.
//!
//! Input: multi-document YAML, `List`s, JSON. What the API server's validation rejects is an error
//! with file and line (A17, A19, A25, A33); unknown fields are warnings. Policy kinds that this
//! crate does not evaluate are named, never skipped silently (A34). Other kinds of objects are
//! counted. Sizes, nesting and alias expansion are bounded, so that no input makes the reader slow
//! or deep.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fmt,
    sync::Arc,
};

use guardrail_graph::Timestamp;
use serde::Serialize;

use crate::{
    evaluate::Facts,
    model::{
        Location, NetworkPolicy, Shared,
        tier::{PolicyKind, TierPolicy},
    },
};

mod changed;
mod cidr;
mod cilium;
mod facts;
mod flow;
mod flows;
mod foreign;
mod hubble;
mod names;
mod object;
mod policy;
mod selector;
mod syntax;
mod text;
mod tiers;
pub mod yaml;

pub use facts::options;
pub use flow::{Flow, Flows, PassedOver};
pub use flows::flows;
pub use foreign::is_read;
pub use names::names;
pub use text::decode;
pub(crate) use yaml::with_room;

/// Larger files are refused, bytes. A policy file of this size is a mistake.
pub const MAX_FILE_BYTES: usize = 64 << 20;

/// What is wrong with the input, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ObjectProblem {
    /// Where.
    pub location: Location,
    /// What kind of problem.
    pub kind: ObjectProblemKind,
    /// The policy (`namespace/name`) in which it stands, if that is known.
    pub policy: Option<String>,
    /// One sentence: what, and what to do.
    pub message: String,
}

impl fmt::Display for ObjectProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.policy {
            Some(policy) => write!(f, "{}: {policy}: {}", self.location, self.message),
            None => write!(f, "{}: {}", self.location, self.message),
        }
    }
}

/// The kinds of [`ObjectProblem`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ObjectProblemKind {
    /// Not YAML or JSON, too large, too deep, binary.
    Syntax,
    /// Not a Kubernetes object, or a policy of an API version that no longer exists.
    WrongKind,
    /// Two different objects of one kind, namespace and name.
    Conflict,
    /// Rejected by the API server's validation.
    Invalid,
    /// A number in quotes where a port is meant: it would be a port *name*, and an invalid one.
    QuotedPort,
    /// A field that the API does not have: the API server drops it.
    UnknownField,
    /// A range with host bits, leading zeros or an IPv4-mapped address: read as older API servers
    /// do.
    AmbiguousCidr,
    /// A field that is there and empty, and so means everything.
    EmptyField,
}

/// The input cannot be used. All problems, in the order in which they stand in the files.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", display(problems))]
pub struct ReadError {
    /// At least one.
    pub problems: Vec<ObjectProblem>,
}

fn display(problems: &[ObjectProblem]) -> String {
    problems.iter().map(ObjectProblem::to_string).collect::<Vec<_>>().join("\n")
}

/// Something that changes who may connect and that nobody here evaluates.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Unevaluated {
    /// `kind`.
    pub kind: String,
    /// `metadata.namespace`, empty for cluster-scoped kinds.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// The object (kind and name) that holds it, if it is not an object of its own.
    pub inside: Option<String>,
    /// Which answers it may change.
    pub touches: Touches,
    /// It may close what NetworkPolicy leaves open, and opens nothing.
    pub restricts_only: bool,
    /// Where.
    pub location: Location,
}

/// Which answers something may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Touches {
    /// Those with an end in its namespace.
    Namespace,
    /// All.
    Everything,
}

impl Unevaluated {
    /// Why an answer is unproven, and what to do where something can be done: one sentence without
    /// a full stop.
    #[must_use]
    pub fn sentence(&self) -> String {
        match self.inside.as_deref() {
            Some(outer) if outer.starts_with("Template ") => format!(
                "{self} is not evaluated, because a parameter or its namespace is open: process the Template first (oc process --local -f {})",
                self.location.file
            ),
            Some("a chart's template") => format!("{self} is not evaluated: render the chart first (helm template)"),
            Some(_) => format!("{self} is not evaluated: add the policy that is made from it as an object of its own"),
            None => format!("{self} is not evaluated"),
        }
    }

    /// [`Unevaluated::sentence`] for somebody who sees the place already.
    #[must_use]
    pub fn without_place(&self) -> String {
        self.sentence().replace(&format!(" ({})", self.location), "")
    }

    /// The namespace that an end must be in for the answer to be touched; `None`: every answer is.
    #[must_use]
    pub fn concerns(&self) -> Option<&str> {
        (self.touches == Touches::Namespace).then_some(self.namespace.as_str())
    }
}

impl fmt::Display for Unevaluated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slash = if self.namespace.is_empty() { "" } else { "/" };
        let blank = if self.name.is_empty() { "" } else { " " };
        write!(f, "{}{blank}{}{slash}{}", self.kind, self.namespace, self.name)?;
        if let Some(outer) = &self.inside {
            write!(f, " in {outer}")?;
        }
        write!(f, " ({})", self.location)
    }
}

/// Whether a text may hold anything that [`Reader`] is interested in: a cheap look before a large
/// inventory is read a second time.
#[must_use]
pub fn may_concern_policies(text: &str) -> bool {
    foreign::NEEDLES.iter().chain(&[facts::CILIUM_CONFIG]).any(|needle| text.contains(needle))
}

/// What was read.
#[derive(Clone, Debug, Default)]
pub struct PolicySet {
    /// Valid policies, in the order of the input, each `namespace/name` once.
    pub policies: Vec<NetworkPolicy>,
    /// Valid policies of the other kinds that are evaluated, in the order of the input, each once.
    pub forms: Vec<TierPolicy>,
    /// What the other objects say that policies of some kinds ask for.
    pub facts: Facts,
    /// Policies of kinds that are not evaluated, sorted.
    pub unevaluated: Vec<Unevaluated>,
    /// Files of directories that hold no Kubernetes object: values, templates, settings of a
    /// pipeline.
    pub left_out: Vec<String>,
    /// Comments that silence the linter.
    pub ignores: Vec<Ignore>,
    /// Unknown fields, ambiguous ranges.
    pub warnings: Vec<ObjectProblem>,
    /// How many objects of other kinds were passed over, per kind.
    pub others: BTreeMap<String, usize>,
    /// Policies of an inventory that its data plane refuses ([`Expect::Inventory`]).
    pub refused: Vec<Refused>,
    /// When policies were changed last, by [`TierPolicy::object`]; those of which the API server
    /// said so: objects as `kubectl get -o yaml` prints them.
    pub changed: BTreeMap<(PolicyKind, String, String), Timestamp>,
    /// They stand in a cluster: what its data plane refuses has no effect there, and is no mistake
    /// in a file.
    pub live: bool,
}

/// A policy that stands in a cluster and that the data plane refuses: the API server stores what
/// Cilium's agent calls invalid, and the traffic stays as it is without it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// As [`TierPolicy::key`].
    pub policy: String,
    /// `metadata.namespace`; empty for a cluster-scoped kind.
    pub namespace: String,
    /// Where it stands.
    pub location: Location,
    /// Why, one sentence without a full stop.
    pub because: String,
    /// It has no effect for certain. Else it may only be unknown here what it says.
    pub certain: bool,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { policy, location, because, certain, .. } = self;
        if *certain {
            write!(f, "{location}: {policy} is left out, as Cilium refuses it and it has no effect: {because}")
        } else {
            write!(f, "{location}: {policy} is left out, and whether Cilium enforces it is not known: {because}")
        }
    }
}

/// A comment `# guardrail: ignore GRnnn reason`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ignore {
    /// The file.
    pub file: Arc<str>,
    /// The line that it speaks of: its own, or the next one that is no comment.
    pub line: u32,
    /// `GRnnn`.
    pub rule: String,
}

/// The comments of a text that silence the linter; without a reason they do not.
fn ignores(file: &Arc<str>, text: &str) -> Vec<Ignore> {
    let mut ignores = Vec::new();
    let mut waiting: Vec<String> = Vec::new();
    for (line, number) in text.lines().zip(1..) {
        let (content, comment) = line.split_once('#').unwrap_or((line, ""));
        let words = comment.trim().strip_prefix("guardrail: ignore ").and_then(|rest| rest.trim().split_once(' '));
        if let Some((rule, reason)) = words
            && !reason.trim().is_empty()
        {
            waiting.push(rule.to_owned());
        }
        // A comment above the first line of a document stands above its `---`, too.
        if !content.trim().is_empty() && content.trim() != "---" {
            ignores.extend(waiting.drain(..).map(|rule| Ignore { file: file.clone(), line: number, rule }));
        }
    }
    ignores
}

impl From<&TierPolicy> for Unevaluated {
    /// A policy of a kind that is evaluated, in a place where it cannot be.
    fn from(form: &TierPolicy) -> Self {
        Self {
            kind: form.kind.as_str().to_owned(),
            touches: if form.namespace.is_empty() { Touches::Everything } else { Touches::Namespace },
            namespace: form.namespace.clone(),
            name: form.name.clone(),
            inside: None,
            restricts_only: false,
            location: form.location.clone().unwrap_or_else(|| Location { file: "memory".into(), line: 0 }),
        }
    }
}

impl From<&Refused> for Unevaluated {
    /// A policy that the data plane may enforce or not.
    fn from(refused: &Refused) -> Self {
        let mut parts = refused.policy.split('/');
        Self {
            kind: parts.next().unwrap_or_default().to_owned(),
            touches: if refused.namespace.is_empty() { Touches::Everything } else { Touches::Namespace },
            namespace: refused.namespace.clone(),
            name: parts.next_back().unwrap_or_default().to_owned(),
            inside: None,
            restricts_only: false,
            location: refused.location.clone(),
        }
    }
}

/// How strict to be with a file that holds no Kubernetes object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// The user named the file as policies: anything that is no object, or no policy at all in a
    /// file that has objects, is an error.
    Policies,
    /// The file was found in a directory: documents that are no objects, and objects of other
    /// kinds, are passed over.
    Anything,
    /// The file is an inventory: as [`Expect::Anything`], and what the data plane refuses is set
    /// aside ([`PolicySet::refused`]).
    Inventory,
}

/// Collects policies from several files.
#[derive(Clone, Debug, Default)]
pub struct Reader {
    set: PolicySet,
    problems: Vec<ObjectProblem>,
    known: BTreeMap<(String, String), usize>,
    /// Indices into the forms, by [`TierPolicy::key`].
    known_forms: BTreeMap<String, usize>,
    shared: Shared,
}

impl Reader {
    /// Nothing read yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads one file. Problems are kept for [`Reader::finish`], so that a user sees all of them at
    /// once.
    pub fn add(&mut self, file: &str, bytes: &[u8], expect: Expect) {
        let file: Arc<str> = file.into();
        let documents = match expect {
            Expect::Policies => yaml::documents(&file, bytes),
            Expect::Anything | Expect::Inventory => yaml::documents_beside(&file, bytes),
        };
        let documents = match documents {
            Ok(documents) => documents,
            Err(_) if expect != Expect::Policies && is_helm_template(bytes) => return self.leave_out(&file, bytes),
            Err(mut problem) => {
                if is_helm_template(bytes) {
                    problem.message.push_str("; a template of a chart has to be rendered first (helm template)");
                }
                return self.problems.push(problem);
            }
        };
        if let Ok(text) = decode(bytes)
            && text.contains("guardrail: ignore")
        {
            self.set.ignores.extend(ignores(&file, &text));
        }
        let mut found = object::Found::default();
        for document in &documents {
            object::collect(&file, document, expect, &mut found);
        }
        let before = found.count();
        if expect != Expect::Policies && before == 0 {
            self.set.left_out.push(file.to_string());
        }
        let object::Found { policies, forms, unevaluated, others, problems, facts, changed } = found;
        self.set.changed.extend(changed);
        if expect == Expect::Policies
            && policies.is_empty()
            && forms.is_empty()
            && unevaluated.is_empty()
            && problems.is_empty()
            && !others.is_empty()
        {
            let (kind, line) = &others[0];
            self.problems.push(ObjectProblem {
                location: Location { file: file.clone(), line: *line },
                kind: ObjectProblemKind::WrongKind,
                policy: None,
                message: format!("this file holds no NetworkPolicy, the first object is a {kind}; name a policy file"),
            });
        }
        self.problems.extend(problems);
        for (kind, _) in others {
            *self.set.others.entry(kind).or_default() += 1;
        }
        self.set.unevaluated.extend(unevaluated);
        for decoded in policies {
            self.set.warnings.extend(decoded.warnings);
            self.problems.extend(decoded.problems);
            if let Some(mut policy) = decoded.policy {
                self.shared.policy(&mut policy);
                self.insert(policy);
            }
        }
        for form in forms {
            if expect == Expect::Inventory
                && let Some(refused) = form.refused(&file)
            {
                self.set.refused.push(refused);
                continue;
            }
            self.set.warnings.extend(form.warnings);
            self.problems.extend(form.problems);
            for mut policy in form.policies {
                self.shared.form(&mut policy);
                self.insert_form(policy);
            }
        }
        let Facts { service_accounts, service_labels, cidr_groups, cilium_config } = facts;
        self.set.facts.service_accounts.extend(service_accounts);
        self.set.facts.service_labels.extend(service_labels);
        self.set.facts.cidr_groups.extend(cidr_groups);
        self.set.facts.cilium_config = cilium_config.or(self.set.facts.cilium_config.take());
    }

    /// Everything that was read.
    ///
    /// # Errors
    /// All problems of all files.
    pub fn finish(self) -> Result<PolicySet, ReadError> {
        let (set, problems) = self.finish_lenient();
        if problems.is_empty() { Ok(set) } else { Err(ReadError { problems }) }
    }

    /// What is valid, and beside it all problems: for the linter.
    #[must_use]
    pub fn finish_lenient(mut self) -> (PolicySet, Vec<ObjectProblem>) {
        // A patch has the name of what it changes.
        let is_kustomization =
            |file: &String| file.ends_with("kustomization.yaml") || file.ends_with("kustomization.yml");
        if self.set.others.contains_key("Kustomization") || self.set.left_out.iter().any(is_kustomization) {
            for problem in self.problems.iter_mut().filter(|p| p.kind == ObjectProblemKind::Conflict) {
                problem.message.push_str(", or render the kustomization first (kubectl kustomize)");
            }
        }
        self.set.unevaluated.sort();
        self.set.unevaluated.dedup_by(|a, b| {
            (&a.kind, &a.namespace, &a.name, &a.inside) == (&b.kind, &b.namespace, &b.name, &b.inside)
        });
        (self.set, self.problems)
    }

    /// A template of a chart is no object before it is rendered; a policy in one is named.
    fn leave_out(&mut self, file: &Arc<str>, bytes: &[u8]) {
        self.set.left_out.push(file.to_string());
        let text = decode(bytes).unwrap_or_default();
        let line = text.lines().position(|line| line.trim_start().starts_with("kind:") && may_concern_policies(line));
        if let Some(at) = line.and_then(|at| u32::try_from(at + 1).ok()) {
            self.set.unevaluated.push(foreign::in_a_chart(file, at));
        }
    }

    fn insert_form(&mut self, policy: TierPolicy) {
        match self.known_forms.entry(policy.key()) {
            Entry::Vacant(entry) => {
                entry.insert(self.set.forms.len());
                self.set.forms.push(policy);
            }
            Entry::Occupied(entry) => {
                let first = &self.set.forms[*entry.get()];
                if first.same_spec(&policy) {
                    return;
                }
                let first_at = first.location.as_ref().map(|l| format!(" at {l}")).unwrap_or_default();
                let kind = policy.kind.as_str();
                self.problems.extend(policy.location.clone().map(|location| ObjectProblem {
                    location,
                    kind: ObjectProblemKind::Conflict,
                    message: format!("a different {kind} of this name stands{first_at}; keep one of them"),
                    policy: Some(policy.key()),
                }));
            }
        }
    }

    fn insert(&mut self, mut policy: NetworkPolicy) {
        let is_other = |known: &usize| !self.set.policies[*known].same_spec(&policy);
        if policy.name.ends_with('*')
            && self.known.get(&(policy.namespace.clone(), policy.name.clone())).is_some_and(is_other)
        {
            // Each gets a name of its own when it is created.
            policy.name.push('*');
            return self.insert(policy);
        }
        match self.known.entry((policy.namespace.clone(), policy.name.clone())) {
            Entry::Vacant(entry) => {
                entry.insert(self.set.policies.len());
                self.set.policies.push(policy);
            }
            Entry::Occupied(entry) => {
                let first = &self.set.policies[*entry.get()];
                if first.same_spec(&policy) {
                    return;
                }
                let first_at = first.location.as_ref().map(|l| format!(" at {l}")).unwrap_or_default();
                self.problems.extend(policy.location.clone().map(|location| ObjectProblem {
                    location,
                    kind: ObjectProblemKind::Conflict,
                    message: format!(
                        "a different NetworkPolicy of this namespace and name stands{first_at}; keep one of them"
                    ),
                    policy: Some(policy.key()),
                }));
            }
        }
    }
}

/// Text with the marks of Go's templates, which is no YAML before they are replaced.
fn is_helm_template(bytes: &[u8]) -> bool {
    decode(bytes).is_ok_and(|text| text.contains("{{"))
}

/// Reads one file of policies.
///
/// # Errors
/// All problems of the file.
pub fn policies(file: &str, bytes: &[u8]) -> Result<PolicySet, ReadError> {
    let mut reader = Reader::new();
    reader.add(file, bytes, Expect::Policies);
    reader.finish()
}

#[cfg(test)]
mod tests;
