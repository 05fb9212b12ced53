//! How long is long enough: nodes of a namespace must have been observed together for a while
//! before it is closed.

use std::collections::BTreeSet;
use std::time::Duration;

use guardrail_graph::snapshot::{Body, Interval};

use super::{Phase, context::Context};
use crate::words::{duration, few};

impl Phase {
    /// For how long the nodes of a namespace must have been observed together, unless a person says
    /// otherwise: a day holds what runs daily, an hour what keeps a namespace alive.
    #[must_use]
    pub const fn min_window(self) -> Duration {
        match self {
            Self::Observe => Duration::ZERO,
            Self::Constrain => Duration::from_secs(3_600),
            Self::DefaultDeny => Duration::from_secs(24 * 3_600),
        }
    }
}

/// Agents of a cluster do not begin at one instant, and hear of nodes a moment later: a node that
/// somebody was told of so soon was there before.
const AT_ONCE: Duration = Duration::from_secs(300);

/// When the nodes of one namespace were observed.
pub(crate) struct NamespaceWindow<'a> {
    /// Observed nodes on which workloads of the namespace run or ran. That other nodes of theirs
    /// were not observed is a matter of completeness.
    nodes: BTreeSet<&'a str>,
    /// When all of these were observed; `None` if at no time.
    pub(crate) common: Option<Interval>,
    /// How much of it never was on one of them, whose clock was set forward.
    never: Duration,
}

impl<'a> NamespaceWindow<'a> {
    pub(crate) fn new(context: &Context<'a>, namespace: &str) -> Self {
        let Body { window, coverage, .. } = context.body;
        let observed = || coverage.nodes.observed.iter().map(String::as_str);
        let mut nodes: BTreeSet<&str> = BTreeSet::new();
        for entry in context.covered(namespace) {
            let in_window = |last| window.from.is_none_or(|from| last > from);
            let ran = entry.ran_on.iter().filter(|(_, last)| in_window(**last)).map(|(node, _)| node);
            let mut places = entry.pods.keys().chain(ran).map(String::as_str).filter(|n| !n.is_empty()).peekable();
            if places.peek().is_none() {
                // It may have run anywhere.
                nodes.extend(observed());
            }
            nodes.extend(places);
        }
        nodes.retain(|node| coverage.nodes.observed.contains(*node));
        let common = match coverage.coverage {
            // How much of the time of pods was observed is judged by itself.
            Some(_) => common_of_those_there(context.body, &nodes),
            None => window.common(nodes.iter().copied()),
        };
        let steps_of = |node: &str| window.steps.get(node).into_iter().flatten();
        let within = |step: &Interval| {
            common.map_or(Duration::ZERO, |common| step.to.min(common.to).since(step.from.max(common.from)))
        };
        let never = nodes.iter().map(|node| steps_of(node).map(within).sum()).max().unwrap_or_default();
        Self { nodes, common, never }
    }

    /// How long they were observed together.
    pub(crate) fn length(&self) -> Duration {
        self.common.map_or(Duration::ZERO, |common| common.to.since(common.from)).saturating_sub(self.never)
    }

    /// Why this is not enough, if it is not: what there is and what is needed.
    pub(crate) fn too_short(&self, namespace: &str, phase: Phase, needed: Duration) -> Option<String> {
        if self.length() >= needed {
            return None;
        }
        let names: Vec<&str> = self.nodes.iter().copied().collect();
        let there_is = match (self.common, names.as_slice()) {
            (_, []) => format!("no node of namespace {namespace} was observed"),
            (None, _) => format!("the nodes of namespace {namespace} were never observed together ({})", few(&names)),
            (Some(_), [node]) => {
                format!("the node of namespace {namespace} was observed for {} ({node})", duration(self.length()))
            }
            (Some(_), _) => format!(
                "the nodes of namespace {namespace} were observed together for {} ({})",
                duration(self.length()),
                few(&names)
            ),
        };
        Some(format!(
            "{there_is}, and {phase} needs {} (--min-window {}): observe longer, or accept it with a shorter --min-window or --force",
            duration(needed),
            argument(needed)
        ))
    }
}

/// When all of these were observed that were there: of a node that joined, or is gone, nobody
/// expects that it was observed before, or later.
fn common_of_those_there(body: &Body, nodes: &BTreeSet<&str>) -> Option<Interval> {
    let known = body.known_nodes();
    let whole = body.window.whole()?;
    let mut common: Option<Interval> = None;
    let mut watched: Option<Interval> = None;
    for node in nodes {
        let observed = body.window.common([*node])?;
        let told = body.nodes.iter().filter(|told| told.name == *node);
        let has_joined = told.map(|told| told.time.from).min().is_some_and(|from| from > whole.from.after(AT_ONCE));
        let is_gone = known.get(node).is_some_and(|known| known.is_gone);
        let from = if has_joined { whole.from } else { observed.from };
        let to = if is_gone { whole.to } else { observed.to };
        let of_node = Interval { from, to };
        common = Some(common.map_or(of_node, |all| all.both(of_node)));
        watched = Some(watched.map_or(observed, |all| all.hull(observed)));
    }
    common.zip(watched).map(|(common, watched)| common.both(watched)).filter(|common| common.from <= common.to)
}

/// A duration as `--min-window` takes it, in the largest unit that says it exactly.
pub(crate) fn argument(duration: Duration) -> String {
    match duration.as_secs() {
        seconds if seconds % 3_600 == 0 && seconds > 0 => format!("{}h", seconds / 3_600),
        seconds if seconds % 60 == 0 && seconds > 0 => format!("{}m", seconds / 60),
        seconds => format!("{seconds}s"),
    }
}
