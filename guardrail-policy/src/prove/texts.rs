//! From the texts of an export back to policies, and which of those in force they replace.

use std::collections::BTreeSet;

use super::Proof;
use crate::{
    emit, exception,
    generate::{Decision, Format, Options, Problem, ProblemKind, stopped},
    model::{
        NetworkPolicy, Shared,
        tier::{PolicyKind, TierPeer, TierPolicy, TierRule},
    },
    parallel::in_parallel,
    read,
};

/// The policies that the files hold, in the one form that is judged: nobody asks for the other, and
/// both are large. Each file holds one of the planned kind, or it is a problem.
pub(super) fn read_back<'a>(
    decision: &Decision,
    files: impl IntoIterator<Item = (&'a str, &'a str)>,
    proof: &mut Proof,
) -> Vec<TierPolicy> {
    let mut forms = Vec::new();
    let format = decision.plan.format;
    let files: Vec<(&str, &str)> = files.into_iter().collect();
    let read_all = |files: &[(&'a str, &'a str)]| {
        // Each policy names many workloads, and each workload is named by many.
        let mut shared = Shared::default();
        let read = files.iter().map(|(name, text)| {
            let read = read::policies(name, text.as_bytes()).map(|mut set| {
                let found = (set.policies.len(), set.forms.len());
                set.policies.iter_mut().for_each(|policy| shared.policy(policy));
                let mut forms: Vec<TierPolicy> = set.policies.iter().map(TierPolicy::from).chain(set.forms).collect();
                forms.iter_mut().for_each(|form| shared.form(form));
                (found, forms)
            });
            (*name, read)
        });
        read.collect::<Vec<_>>()
    };
    let read = in_parallel(&files, |files| read::with_room(|| read_all(files)).unwrap_or_else(|| read_all(files)));
    for (name, read) in read.into_iter().flatten() {
        let why = match read {
            Ok((found, read)) => {
                let expected = match format {
                    Format::NetworkPolicy => (1, 0),
                    Format::Cilium => (0, 1),
                };
                forms.extend(read);
                if found == expected {
                    continue;
                }
                format!("it holds {} policies", found.0 + found.1)
            }
            Err(error) => error.to_string(),
        };
        let message = format!("{name} does not read back as {}: {why}; please report it", format.kind());
        proof.problems.insert(Problem::new(ProblemKind::Denied, emit::namespace_of_file(name), message));
    }
    names_are_learnt(&forms, proof);
    forms
}

/// To Cilium a name stands for the addresses that it saw in answers: without a rule that sends the
/// same pods' questions through its proxy, for none.
fn names_are_learnt(forms: &[TierPolicy], proof: &mut Proof) {
    let names = |rule: &TierRule| rule.peers.iter().flatten().any(|peer| matches!(**peer, TierPeer::Name(_)));
    for form in forms.iter().filter(|form| form.egress.iter().any(names) && !form.egress.iter().any(|rule| rule.l7)) {
        let message =
            format!("{} names servers, and no rule of it has their names learnt: please report it", form.key());
        proof.problems.insert(Problem::new(ProblemKind::Denied, [form.namespace.as_str()], message));
    }
}

/// Beginning of the name of every policy that an export writes.
const OURS: &str = "guardrail-";

/// Policies in force, but for those that what we write replaces: of one kind, namespace and name;
/// and, where a plan says what a namespace is meant to be, all that an earlier export wrote for it.
pub(super) fn not_replaced(
    options: &Options,
    decision: &Decision,
    forms: &[TierPolicy],
) -> (Vec<NetworkPolicy>, Vec<TierPolicy>) {
    let stopped = stopped(&decision.problems, options.forced || options.stopped_too);
    let is_earlier = |namespace: &str, name: &str| {
        let goes_on = options.goals.contains_key(namespace) && !stopped.contains(namespace);
        // Exceptions are decided anew for every namespace.
        name.starts_with(OURS) && goes_on || name.starts_with(exception::PREFIX) && !options.goals.is_empty()
    };
    let written: BTreeSet<_> = forms.iter().map(TierPolicy::object).collect();
    let object = |p: &NetworkPolicy| (PolicyKind::NetworkPolicy, p.namespace.clone(), p.name.clone());
    let kept = options.existing.iter().filter(|policy| !written.contains(&object(policy)));
    let kept_forms = options.existing_forms.iter().filter(|form| !written.contains(&form.object()));
    (
        kept.filter(|p| !is_earlier(&p.namespace, &p.name)).cloned().collect(),
        kept_forms.filter(|form| !is_earlier(&form.namespace, &form.name)).cloned().collect(),
    )
}
