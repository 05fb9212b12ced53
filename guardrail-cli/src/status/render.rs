//! A status for people: one line a namespace, or everything about one.

use std::io::Write;

use guardrail_lifecycle::{
    plan::Wanted,
    status::{InForce, NamespaceStatus, SideInForce},
};
use guardrail_policy::generate::Phase;

use crate::output::{self, Cell, Paint, Table};

/// What a list shows at most before it counts.
const SHOWN: usize = 20;

/// One line a namespace.
pub(super) fn table(out: &mut impl Write, all: &[NamespaceStatus]) -> anyhow::Result<()> {
    let mut table = Table::new(&["NAMESPACE", "WANTED", "IN FORCE", "NEXT STEP", "HELD BACK BY"]);
    for status in all {
        let paint = if status.as_wanted { Paint::Plain } else { Paint::Bad };
        table.row([
            Cell::new(&status.namespace),
            Cell::new(status.wanted.map_or_else(|| "-".to_owned(), wanted)),
            Cell::new(in_force(&status.in_force)).paint(paint),
            Cell::new(status.next.map_or_else(|| "-".to_owned(), wanted)),
            Cell::new(held_back(status)),
        ]);
    }
    table.print(out, output::colour())?;
    writeln!(out, "\n{}", counted(all))?;
    Ok(())
}

fn counted(all: &[NamespaceStatus]) -> String {
    let count = |n: usize| if n == 1 { "1 namespace".to_owned() } else { format!("{n} namespaces") };
    let ready = all.iter().filter(|status| status.next.is_some() && status.is_ready()).count();
    let behind: Vec<&NamespaceStatus> = all.iter().filter(|status| !status.as_wanted).collect();
    if all.iter().all(|status| status.wanted.is_none()) {
        return format!("{}, {ready} ready for the next step.", count(all.len()));
    }
    format!("{}: {} not as wanted, {ready} ready for the next step.", count(all.len()), behind.len())
}

fn wanted(Wanted { phase, egress }: Wanted) -> String {
    format!("{phase}{}", if egress { " + egress" } else { "" })
}

/// `observe` is what nothing closes.
fn closed(phase: Phase) -> &'static str {
    match phase {
        Phase::Observe => "open",
        Phase::Constrain => "constrain",
        Phase::DefaultDeny => "default-deny",
    }
}

fn in_force(InForce { pods, ingress, egress }: &InForce) -> String {
    let Some(phase) = ingress.phase else { return "no pods".to_owned() };
    let mut text = closed(phase).to_owned();
    if ingress.pods_by_phase.len() > 1 || (1..*pods).contains(&ingress.isolated) {
        text += &format!(", {} of {pods} pods isolated for ingress", ingress.isolated);
    }
    if egress.phase.is_some_and(|least| least > Phase::Observe) {
        text += " + egress";
    } else if egress.isolated > 0 {
        text += &format!(", {} of {pods} for egress", egress.isolated);
    }
    text
}

/// What holds the next step back, in a few words.
fn held_back(status: &NamespaceStatus) -> String {
    if status.next.is_none() {
        return sensitive_missing(status).unwrap_or_else(|| "-".to_owned());
    }
    let counted = |n: usize, what: &str| (n > 0).then(|| format!("{n} {what}{}", if n == 1 { "" } else { "s" }));
    let gates = status.gates.iter().filter(|gate| !gate.passed);
    let mut parts: Vec<String> =
        gates.map(|gate| format!("{}: {}, needs {}", gate.name, gate.is, gate.needs)).collect();
    parts.extend(counted(status.would_break.len(), "flow").map(|flows| format!("{flows} would break")));
    parts.extend(counted(status.stopped_by.len(), "problem"));
    if parts.is_empty() {
        parts.push("ready".to_owned());
    }
    parts.extend(sensitive_missing(status));
    parts.join("; ")
}

fn sensitive_missing(status: &NamespaceStatus) -> Option<String> {
    let open = status.sensitive.iter().filter(|workload| workload.closed < workload.pods).count();
    (open > 0).then(|| format!("{open} sensitive workload{} open", if open == 1 { "" } else { "s" }))
}

/// Everything about one namespace.
pub(super) fn story(out: &mut impl Write, status: &NamespaceStatus) -> anyhow::Result<()> {
    writeln!(out, "\nnamespace {}", output::plain_line(&status.namespace))?;
    let InForce { pods, ingress, egress } = &status.in_force;
    if let Some(wanted) = status.wanted {
        let mark = if status.as_wanted { "" } else { ", which is not in force" };
        writeln!(out, "  wanted      {}{mark}", self::wanted(wanted))?;
    }
    for (name, side) in [("ingress", ingress), ("egress", egress)] {
        writeln!(out, "  {name:<11} {}", side_in_words(side, *pods))?;
    }
    for workload in &status.sensitive {
        let (name, closed, pods) = (output::plain_line(&workload.workload.to_string()), workload.closed, workload.pods);
        writeln!(out, "  sensitive   {name}: {closed} of {pods} pods closed")?;
    }
    match status.next {
        None => writeln!(out, "  next step   none")?,
        Some(next) => {
            let ready = if status.is_ready() { "ready" } else { "held back" };
            writeln!(out, "  next step   {}: {ready}", wanted(next))?;
            for gate in &status.gates {
                let passed = if gate.passed { "passed" } else { "not yet" };
                writeln!(out, "    {:<9} {passed}: {}, needs {}", gate.name, gate.is, gate.needs)?;
            }
        }
    }
    list(out, "would break", status.would_break.iter())?;
    list(out, "stopped by", status.stopped_by.iter())?;
    list(out, "denied by the policies in force", status.denied_now.iter())?;
    list(out, "without evidence: nobody called them, they called nobody", status.without_evidence.iter())?;
    let told: Vec<String> = status
        .exceptions
        .iter()
        .map(|e| format!("{} {} ({}, {}): {}", e.id, e.told, e.expires, e.owner, e.reason))
        .collect();
    list(out, "exceptions", told.iter())
}

fn side_in_words(side: &SideInForce, pods: usize) -> String {
    let Some(phase) = side.phase else { return "no pods".to_owned() };
    let each: Vec<String> =
        side.pods_by_phase.iter().map(|(phase, count)| format!("{count} {}", closed(*phase))).collect();
    let mixed = if each.len() > 1 { format!(" ({})", each.join(", ")) } else { String::new() };
    format!("{}{mixed}: {} of {pods} pods isolated", closed(phase), side.isolated)
}

fn list<'a>(out: &mut impl Write, title: &str, items: impl ExactSizeIterator<Item = &'a String>) -> anyhow::Result<()> {
    let count = items.len();
    if count == 0 {
        return Ok(());
    }
    writeln!(out, "  {title}:")?;
    for item in items.take(SHOWN) {
        for (index, line) in output::wrap(&output::plain_line(item), 92).into_iter().enumerate() {
            writeln!(out, "    {}{line}", if index == 0 { "- " } else { "  " })?;
        }
    }
    if count > SHOWN {
        writeln!(out, "    and {} more; -o json has all", count - SHOWN)?;
    }
    Ok(())
}
