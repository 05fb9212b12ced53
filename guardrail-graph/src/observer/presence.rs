//! Which pods were there: those of this node since their own start, and those of nodes that have
//! been without a Ready agent for a while, as long as there is none.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use super::Observer;
use crate::{
    interner::Interner,
    inventory::Pod,
    peer::WorkloadRef,
    snapshot::{
        Body, Interval, PodPresence, Source,
        facts::Facts,
        presence::{PodKey, Pods, Present, add_pod},
    },
    time::Timestamp,
};

/// Pods kept of one epoch that are no more. If there are more, nobody knows all who were there.
const MAX_ENDED: usize = 20_000;
/// Epochs end daily. In one that lasts longer, pods that ended so long ago are no longer told
/// apart.
const APART: Duration = Duration::from_secs(25 * 3_600);
/// A node whose agent has been away for less is none without one: agents restart.
const AWAY: Duration = Duration::from_secs(60);
/// Kubernetes says that an agent is not Ready at most this long after it ended.
const LATE: Duration = Duration::from_secs(120);
/// How long a pod lived that lived for a time that nobody knows.
const INSTANT: Duration = Duration::from_secs(1);
/// How the agents' own pods are found: this label, on pods of a DaemonSet.
const AGENT: (&str, &str) = ("app.kubernetes.io/name", "guardrail-agent");

/// `(namespace, name)`.
type Name = (Arc<str>, Arc<str>);

/// Since when a pod of this node is there.
#[derive(Clone, Copy, Debug)]
struct Since {
    from: Timestamp,
    started: Option<Timestamp>,
    /// The clock was set to this while it was there: what it shows of before is told already.
    resumed: Option<Timestamp>,
}

impl Since {
    fn heard(from: Timestamp) -> Self {
        Self { from, started: None, resumed: None }
    }

    /// It started then, by its own word.
    fn starts(&mut self, started: Timestamp) {
        let is_new = self.resumed.is_none_or(|resumed| started >= resumed);
        self.from = self.resumed.filter(|_| !is_new).unwrap_or(started);
        self.started = is_new.then_some(started);
    }
}

/// Pods that are, and were, there.
#[derive(Debug, Default)]
pub(super) struct Presence {
    /// Of this node.
    own: HashMap<Name, Since>,
    /// Those that ended in this epoch, on this node or another.
    ended: Pods,
    full: bool,
    /// The agents' own pods, with their node and whether they are Ready.
    agents: BTreeMap<Name, (Arc<str>, bool)>,
    /// Where there is a Ready agent, and how many.
    tended: BTreeMap<Arc<str>, usize>,
    /// When the last Ready agent of a node was no more.
    left: BTreeMap<Arc<str>, Timestamp>,
    /// When the list of pods came.
    listed: Option<Timestamp>,
    /// Since when pods of a restored state were there that never said when they started, or over
    /// a step of the clock.
    restored: HashMap<Name, Timestamp>,
    texts: Interner<str>,
    names: Interner<WorkloadRef>,
}

fn is_agent(pod: &Pod) -> bool {
    pod.labels.get(AGENT.0) == Some(AGENT.1) && pod.controller.as_ref().is_some_and(|owner| owner.kind == "DaemonSet")
}

/// Whether it runs, or ran: one that waits for its node has no time yet.
fn is_there(pod: &Pod) -> bool {
    pod.started.is_some() || !pod.addresses.is_empty()
}

/// What is told of a pod that started then, by one who tells since then.
fn told(started: Timestamp, since: Timestamp) -> Since {
    Since { from: started.max(since), started: Some(started), resumed: None }
}

impl Presence {
    fn name(&mut self, pod: &Pod) -> Name {
        (self.texts.intern(&*pod.namespace), self.texts.intern(&*pod.name))
    }

    /// Since when pods of that node are told of, if they are: as far back as is known.
    fn tells_of(&self, node: &str, now: Timestamp) -> Option<Timestamp> {
        let listed = self.listed.filter(|_| !self.agents.is_empty() && !self.tended.contains_key(node))?;
        let left = self.left.get(node);
        let since = left.map_or(Timestamp::MIN, |at| at.before(LATE));
        (now.since(left.copied().unwrap_or(listed)) >= AWAY).then_some(since)
    }

    fn end(&mut self, pod: &Pod, owner: WorkloadRef, since: Since, to: Timestamp, told: bool) {
        let Some(node) = &pod.node else { return };
        if self.ended.len() >= MAX_ENDED {
            self.full = true;
            return;
        }
        let (namespace, name) = self.name(pod);
        let key = (namespace, name, self.texts.intern(&**node), since.from, told);
        let present = Present { to: to.max(since.from), started: since.started, workload: self.names.intern(owner) };
        add_pod(&mut self.ended, key, present);
    }

    fn node_is_left(&mut self, node: &Arc<str>, now: Timestamp) {
        if let Some(agents) = self.tended.get_mut(node) {
            *agents -= 1;
            if *agents == 0 {
                self.tended.remove(node);
                self.left.insert(Arc::clone(node), now);
            }
        }
    }

    /// Takes back what a stored state has of this node. What ended, ended; what goes on is heard of
    /// again.
    fn restore(&mut self, node: &str, pods: &[PodPresence], full: bool) {
        self.full = full;
        for pod in pods {
            let name = (self.texts.intern(&*pod.workload.namespace), self.texts.intern(&*pod.pod));
            if pod.node == node && pod.started.is_none() {
                let from = self.restored.entry(name.clone()).or_insert(pod.from);
                *from = pod.from.max(*from);
            }
            let key = (name.0, name.1, self.texts.intern(&*pod.node), pod.from, pod.told);
            let workload = self.names.intern(pod.workload.clone());
            add_pod(&mut self.ended, key, Present { to: pod.to, started: pod.started, workload });
        }
    }

    /// Pods of this node that were there as the gap began, and of which the list after it knows
    /// nothing, lived into it. How far, nobody knows.
    fn lived_into(&mut self, gap: Interval, node: &str) {
        let Self { own, ended, .. } = self;
        for ((namespace, name, of, _, told), pod) in ended.iter_mut() {
            let is_gone = || !own.contains_key(&(Arc::clone(namespace), Arc::clone(name)));
            if **of == *node && !*told && pod.to >= gap.from && is_gone() {
                pod.to = pod.to.max(gap.from.after(INSTANT).min(gap.to));
            }
        }
    }

    /// Joins pods that ended long ago, by workload and node, and forgets those of workloads that
    /// are not known any more.
    fn expire(&mut self, before: Timestamp, is_known: impl Fn(&WorkloadRef) -> bool) {
        let many = |workload: &WorkloadRef| format!("{}/{}/*", workload.owner, workload.name);
        let is_old = |key: &PodKey, pod: &Present| pod.to < before && !key.1.ends_with("/*");
        let old: Vec<(PodKey, Present)> = self.ended.extract_if(.., |key, pod| is_old(key, pod)).collect();
        for ((namespace, _, node, from, told), pod) in old.into_iter().filter(|(_, pod)| is_known(&pod.workload)) {
            let name = self.texts.intern(many(&pod.workload).as_str());
            let first = (Arc::clone(&namespace), Arc::clone(&name), Arc::clone(&node), Timestamp::MIN, false);
            let last = (Arc::clone(&namespace), Arc::clone(&name), Arc::clone(&node), Timestamp::MAX, true);
            let known = self.ended.range(first..=last).find(|(key, _)| key.4 == told);
            let known = known.map(|(key, _)| key.clone()).and_then(|key| Some((key.3, self.ended.remove(&key)?.to)));
            let (from, to) = known.map_or((from, pod.to), |(first, last)| (from.min(first), pod.to.max(last)));
            let joined = Present { to, started: None, workload: pod.workload };
            self.ended.insert((namespace, name, node, from, told), joined);
        }
    }

    /// Another epoch begins with this run of observation. Pods that were there as nobody watched
    /// any more may have lived on.
    pub(super) fn turn_back(&mut self, node: &str, ended: Timestamp) {
        let mut there = std::mem::take(&mut self.ended);
        there.retain(|(_, _, of, _, told), pod| **of == *node && !*told && pod.to >= ended);
        self.turn();
        self.ended = there;
    }

    /// What is there goes on from a time to which the clock was set.
    pub(super) fn resume(&mut self, at: Timestamp) {
        for since in self.own.values_mut() {
            *since = Since { resumed: Some(at), ..Since::heard(at) };
        }
    }

    /// Another epoch begins.
    pub(super) fn turn(&mut self) {
        self.ended.clear();
        self.full = false;
        self.texts.expire();
        self.names.expire();
    }
}

impl Observer {
    /// A pod was added or changed; `before`: as it was.
    pub(super) fn pod_is_there(&mut self, pod: &Pod, before: Option<&Pod>, now: Timestamp) {
        let is_other = before.is_some_and(|before| before.uid != pod.uid || before.node != pod.node);
        if let Some(before) = before.filter(|before| is_other || (pod.finished && !before.finished)) {
            self.pod_is_gone(before, now);
        }
        self.agent_is_there(pod, now);
        if pod.node.as_deref() != Some(&*self.config.node) || !is_there(pod) {
            return;
        }
        if pod.finished {
            // How long it was there before anybody heard of it, its start says: if it was not seen
            // before, and in a first list if it began while nobody watched.
            let gap = self.history.gap();
            let end = match pod.started.filter(|at| before.is_none() && *at < now) {
                Some(_) if self.presence.listed.is_some() => Some(now),
                Some(at) => gap.filter(|gap| gap.from <= at && at < gap.to).map(|gap| gap.to),
                None => None,
            };
            if let Some(end) = end {
                self.end_own(pod, None, end);
            }
            return;
        }
        let name = self.presence.name(pod);
        let first_heard = if self.presence.listed.is_some() { now } else { self.history.started() };
        let restored = self.presence.restored.remove(&name);
        let since = self
            .presence
            .own
            .entry(name)
            .or_insert_with(|| Since { resumed: restored, ..Since::heard(restored.unwrap_or(first_heard)) });
        if let Some(started) = pod.started {
            since.starts(started);
        }
    }

    /// A pod ended.
    pub(super) fn pod_is_gone(&mut self, pod: &Pod, now: Timestamp) {
        let name = self.presence.name(pod);
        if let Some(since) = self.presence.own.remove(&name) {
            self.end_own(pod, Some(since), now);
        } else if !pod.finished {
            self.end_told(pod, now);
        }
        if let Some((node, true)) = self.presence.agents.remove(&name) {
            self.presence.node_is_left(&node, now);
        }
    }

    fn end_own(&mut self, pod: &Pod, since: Option<Since>, now: Timestamp) {
        let started = || pod.started.map(|at| Since { started: Some(at), ..Since::heard(at) });
        let Some(since) = since.or_else(started) else { return };
        let owner = self.catalogue.inventory().owner_of(pod).workload;
        self.presence.end(pod, owner, since, now, false);
    }

    /// The clock was set forward, within an epoch: what was there, was there until the one time and
    /// from the other one on.
    pub(super) fn step_presence(&mut self, ended: Timestamp, begins: Timestamp) {
        let there: Vec<(Name, Since)> = self.presence.own.iter().map(|(name, since)| (name.clone(), *since)).collect();
        for ((namespace, name), since) in there {
            let pod = self.catalogue.inventory().pod(&namespace, &name).cloned();
            if let Some(pod) = pod {
                self.end_own(&pod, Some(since), ended);
            }
        }
        self.presence.resume(begins);
    }

    /// Tells of a pod of another node until now, if nobody else does. One without a start is not
    /// there yet.
    fn end_told(&mut self, pod: &Pod, now: Timestamp) {
        let (Some(node), Some(started)) = (&pod.node, pod.started) else { return };
        if **node == *self.config.node {
            return;
        }
        if let Some(since) = self.presence.tells_of(node, now) {
            let owner = self.catalogue.inventory().owner_of(pod).workload;
            self.presence.end(pod, owner, told(started, since), now, true);
        }
    }

    fn agent_is_there(&mut self, pod: &Pod, now: Timestamp) {
        let Some(node) = pod.node.as_deref().filter(|_| is_agent(pod)) else { return };
        let (name, node) = (self.presence.name(pod), self.presence.texts.intern(node));
        let is_ready = pod.ready && !pod.finished;
        let was_ready =
            self.presence.agents.insert(name, (Arc::clone(&node), is_ready)).is_some_and(|(_, ready)| ready);
        if is_ready == was_ready {
            return;
        }
        if is_ready {
            self.node_is_tended(&node, now);
            self.presence.left.remove(&node);
            *self.presence.tended.entry(node).or_default() += 1;
        } else {
            self.presence.node_is_left(&node, now);
        }
    }

    /// There is a Ready agent now: from here on it speaks for its node.
    fn node_is_tended(&mut self, node: &str, now: Timestamp) {
        if self.presence.tells_of(node, now).is_none() {
            return;
        }
        let inventory = self.catalogue.inventory();
        let there = inventory.pods().filter(|pod| pod.node.as_deref() == Some(node) && !pod.finished);
        for pod in there.cloned().collect::<Vec<_>>() {
            self.end_told(&pod, now);
        }
    }

    /// The list of pods has come.
    pub(super) fn pods_are_listed(&mut self, now: Timestamp) {
        if self.presence.listed.is_none()
            && let Some(gap) = self.history.gap()
        {
            self.presence.lived_into(gap, &self.config.node);
        }
        self.presence.listed.get_or_insert(now);
        self.presence.restored = HashMap::new();
    }

    /// Takes back what a stored state has.
    pub(super) fn restore_presence(&mut self, body: &Body) {
        let full = body.witnesses.iter().any(|witness| witness.full);
        self.presence.restore(&self.config.node, &body.presence, full);
    }

    /// Forgets what an epoch that does not end cannot hold.
    pub(super) fn expire_presence(&mut self, now: Timestamp) {
        if self.history.epoch().is_none_or(|begun| now.since(begun) > APART) {
            let catalogue = &self.catalogue;
            self.presence.expire(now.before(APART), |workload| catalogue.workload(workload).is_some());
        }
    }

    /// Which pods were there until now; those that are there, until `end`.
    pub(super) fn presence_facts(&self, facts: &mut Facts, source: &Arc<Source>, (now, end): (Timestamp, Timestamp)) {
        let Presence { own, ended, full, agents, listed, .. } = &self.presence;
        facts.pods.clone_from(ended);
        if !self.catalogue.knows_pods() {
            return;
        }
        facts.witnesses.insert(Arc::clone(source), (listed.is_some() && !agents.is_empty(), *full));
        let inventory = self.catalogue.inventory();
        let mut nodes: BTreeSet<Arc<str>> = BTreeSet::new();
        let mut names = Interner::<WorkloadRef>::default();
        let mut add = |facts: &mut Facts, pod: &Pod, since: Since, told: bool| {
            let Some(node) = pod.node.as_deref() else { return };
            let node = nodes.get(node).cloned().unwrap_or_else(|| Arc::from(node));
            nodes.insert(Arc::clone(&node));
            let key = (Arc::from(&*pod.namespace), Arc::from(&*pod.name), node, since.from, told);
            let workload = names.intern(inventory.owner_of(pod).workload);
            add_pod(&mut facts.pods, key, Present { to: end.max(since.from), started: since.started, workload });
        };
        for ((namespace, name), since) in own {
            if let Some(pod) = inventory.pod(namespace, name) {
                add(facts, pod, *since, false);
            }
        }
        for pod in inventory.pods().filter(|pod| !pod.finished) {
            let (Some(node), Some(started)) = (pod.node.as_deref(), pod.started) else { continue };
            let since = self.presence.tells_of(node, now).filter(|_| *node != *self.config.node);
            if let Some(since) = since {
                if facts.pods.len() >= 2 * MAX_ENDED {
                    facts.witnesses.insert(Arc::clone(source), (true, true));
                    break;
                }
                add(facts, pod, told(started, since), true);
            }
        }
    }
}
