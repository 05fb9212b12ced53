//! From a configuration to what the reading thread begins with: programs just loaded, or those that
//! an earlier agent pinned.

use std::{collections::HashMap, os::fd::AsFd as _, time::Instant};

use guardrail_common::flow::{FlowKey, FlowValue};

use crate::{
    bpf,
    checkpoint::Checkpoint,
    clock,
    config::{BpfLogLevel, KernelConfig},
    error::KernelError,
    journal::Journal,
    load::{self, MapSource, Programs},
    pin::{self, Generation, Leaving, Pins},
    reader::{Begin, Flows, FoundJournal, Maps, Owned, Predecessor, carry},
    sockets::{self, OpenSockets},
};

/// Loaded or taken over, and what the thread begins with.
pub(crate) struct Started {
    pub(crate) maps: Maps,
    pub(crate) programs: Programs,
    pub(crate) begin: Begin,
    pub(crate) journal: Option<Journal>,
    pub(crate) pinned: Option<Owned>,
    pub(crate) warnings: Vec<String>,
    /// The hooks were attached all the time since the checkpoint.
    pub(crate) is_seamless: bool,
}

/// Maps that are pinned, with the journal.
const MAPS: [&str; 10] = [
    "FLOW_RING",
    "CGROUP_RING",
    "DNS_RING",
    "FLOWS",
    "COUNTERS",
    "CGROUP_LOSSES",
    "CGROUPS",
    "DIALLED",
    "KEYS_INSERTED",
    "KEYS_REMOVED",
];
/// The journal's name among them.
const JOURNAL: &str = "JOURNAL";
/// The name of the list of entries carried over.
const CARRIED: &str = "CARRIED";

/// Loads, attaches and lists; with a generation under its names. What is open in older maps is
/// there before the programs are, and so ends in the new ones.
pub(crate) fn alone(
    config: &KernelConfig,
    root_cgroup: u64,
    generation: Option<&Generation>,
    older: &mut [Predecessor],
) -> Result<Started, KernelError> {
    let mut warnings = Vec::new();
    let began = Instant::now();
    let mut loaded = load::Loaded::load(config, root_cgroup)?;
    let load_ms = began.elapsed().as_millis();
    let (mut journal, mut pinned) = (None, None);
    if let Some(generation) = generation {
        for name in MAPS {
            generation.pin_map(name, loaded.map(name)?.as_fd())?;
        }
        let map = Journal::create_map(config.flow_entries).map_err(journal_failed)?;
        generation.pin_map(JOURNAL, map.as_fd())?;
        journal = Some(Journal::open(map.as_fd()).map_err(journal_failed)?.0);
        let (key, value) = (size_of::<FlowKey>(), size_of::<FlowValue>());
        let map = bpf::create_map(bpf::MAP_TYPE_HASH, key, value, config.flow_entries, bpf::NO_PREALLOC);
        let map = map.map_err(|source| KernelError::System { what: format!("making the map {CARRIED}"), source })?;
        generation.pin_map(CARRIED, map.as_fd())?;
        pinned = Some(owned(generation)?);
    }
    let maps = maps(&mut loaded)?;
    let mut carried = HashMap::new();
    for (older, pinned) in older.iter_mut().zip(pinned.iter().cycle()) {
        carried.extend(carry(&mut older.maps.flows, &maps.flows, &pinned.carried));
    }
    // What happens between the two is counted twice, never not at all; so the one follows on the
    // other at once (an RCU grace period later).
    let mut leaving = Leaving::default();
    loaded.attach(&config.cgroup_root, generation, |name| {
        // The second of the TCP programs takes all that the first does not see: without the first
        // it would count everything once more.
        let names: &[&str] = if name == load::FIRST { &[load::SECOND, load::FIRST] } else { &[name] };
        older.iter().try_for_each(|older| older.generation.let_go(names, &mut leaving))
    })?;
    leaving.wait();
    let attach_ms = began.elapsed().as_millis() - load_ms;
    let listed_at = clock::boot_ns();
    let sockets = match loaded.open_socket_iterator(generation) {
        Ok(iterator) => read_sockets(iterator)?,
        Err(error) => {
            warnings.push(format!("connections older than the agent are seen only when they end: {error}"));
            OpenSockets::default()
        }
    };
    let listed_until = clock::boot_ns();
    let sockets_ms = began.elapsed().as_millis() - load_ms - attach_ms;
    tracing::debug!(load_ms, attach_ms, sockets_ms, "programs are loaded and attached, open sockets are listed");
    Ok(Started {
        maps,
        programs: loaded.into_programs()?,
        begin: Begin { sockets, listed_at, listed_until, taken_over: None, older: Vec::new(), carried },
        journal,
        pinned,
        warnings,
        is_seamless: false,
    })
}

/// Takes over what an earlier agent of the same build left, or loads anew and lets the maps that it
/// left be reported and removed.
pub(crate) fn pinned(
    config: &KernelConfig,
    root_cgroup: u64,
    pins: &Pins,
    mut checkpoint: Option<Checkpoint>,
) -> Result<Started, KernelError> {
    let build = pin::build(config, root_cgroup);
    let (mut found, mut outdated) = (Vec::new(), Vec::new());
    for generation in pins.generations()? {
        let manifest = generation.manifest();
        if checkpoint.as_ref().is_some_and(|checkpoint| generation.id < checkpoint.generation) {
            // Those before the checkpoint's were reported to their end before it.
            generation.remove()?;
        } else if manifest.is_some_and(|(layout, _)| layout == guardrail_common::LAYOUT) {
            found.push((generation, manifest.is_some_and(|(_, of)| of == build)));
        } else {
            outdated.push(generation);
        }
    }
    let was_attached =
        found.last().is_some_and(|(newest, _)| newest.has_links(&load::attached(false))) && outdated.is_empty();
    let is_known =
        checkpoint.as_ref().is_some_and(|c| found.iter().any(|(generation, _)| generation.id == c.generation));
    let mut checkpoint_of = |generation: &Generation| match checkpoint.take_if(|c| c.generation == generation.id) {
        Some(checkpoint) => Ok(checkpoint),
        // No stored graph knows of it: only what it was given is reported.
        None => Ok(Checkpoint { generation: generation.id, flows: carried(generation)?, ..Checkpoint::default() }),
    };
    let newest = found.pop_if(|(newest, is_same_build)| {
        *is_same_build
            && newest.has_links(&load::attached(config.udp))
            // Its messages can be read by the agent that loaded it only.
            && config.bpf_log_level == BpfLogLevel::Off
    });
    let mut older = Vec::new();
    for (mut generation, _) in found {
        older.push(Predecessor {
            maps: maps(&mut generation)?,
            found: open_journal(&generation)?,
            checkpoint: checkpoint_of(&generation)?,
            generation,
        });
    }
    let mut started = match newest {
        Some((generation, _)) => {
            let checkpoint = checkpoint_of(&generation)?;
            take_over(config, generation, checkpoint)?
        }
        None => {
            let generation = pins.create()?;
            let started = alone(config, root_cgroup, Some(&generation), &mut older);
            if started.is_err() {
                let _ = generation.remove();
            }
            let started = started?;
            generation.complete(build)?;
            started
        }
    };
    for older in &older {
        older.generation.detach()?;
    }
    started.begin.older = older;
    started.is_seamless = is_known && was_attached;
    for generation in outdated {
        started.warnings.push(
            "the maps that an earlier agent pinned are of another version: what it counted since its last state is lost"
                .to_owned(),
        );
        generation.remove()?;
    }
    Ok(started)
}

/// The programs that an earlier agent left attached, and their maps, are ours.
fn take_over(
    config: &KernelConfig,
    mut generation: Generation,
    checkpoint: Checkpoint,
) -> Result<Started, KernelError> {
    let programs = Programs::adopt(&generation, config)?;
    let FoundJournal { journal, notes, broken } = open_journal(&generation)?;
    let listed_at = clock::boot_ns();
    let (sockets, warnings) = match Programs::open_socket_iterator(&generation) {
        Ok(iterator) => (read_sockets(iterator)?, Vec::new()),
        Err(error) => (OpenSockets::default(), vec![format!("listening sockets are not known: {error}")]),
    };
    Ok(Started {
        maps: maps(&mut generation)?,
        programs,
        begin: Begin {
            sockets,
            listed_at,
            listed_until: clock::boot_ns(),
            taken_over: Some((notes, broken, checkpoint)),
            older: Vec::new(),
            carried: HashMap::new(),
        },
        journal: Some(journal),
        pinned: Some(owned(&generation)?),
        warnings,
        is_seamless: false,
    })
}

/// What else is ours of a generation.
fn owned(generation: &Generation) -> Result<Owned, KernelError> {
    Ok(Owned { generation: generation.id, carried: carried_list(generation)?, reported: Vec::new() })
}

fn carried_list(generation: &Generation) -> Result<Flows, KernelError> {
    Flows::new(generation.map(CARRIED)?.as_fd()).map_err(carried_failed)
}

/// Entries that were carried over into a generation.
fn carried(generation: &Generation) -> Result<Vec<(FlowKey, FlowValue)>, KernelError> {
    let mut carried = Vec::new();
    // What does not decode is reported once more rather than not at all.
    let (_, result) = carried_list(generation)?.entries(|key, value| carried.push((*key, *value)));
    result.map_err(carried_failed)?;
    Ok(carried)
}

fn carried_failed(source: std::io::Error) -> KernelError {
    KernelError::System { what: format!("reading the map {CARRIED}"), source }
}

fn open_journal(generation: &Generation) -> Result<FoundJournal, KernelError> {
    let map = generation.map(JOURNAL)?;
    let (journal, notes, broken) = Journal::open(map.as_fd()).map_err(journal_failed)?;
    Ok(FoundJournal { journal, notes, broken })
}

fn journal_failed(source: std::io::Error) -> KernelError {
    KernelError::System { what: format!("opening the map {JOURNAL}"), source }
}

fn read_sockets(iterator: std::fs::File) -> Result<OpenSockets, KernelError> {
    sockets::read(iterator)
        .map_err(|source| KernelError::System { what: "reading the socket iterator".to_owned(), source })
}

/// Rings and maps of a source.
fn maps(source: &mut impl MapSource) -> Result<Maps, KernelError> {
    fn table<const K: usize, const V: usize>(
        source: &mut impl MapSource,
        name: &str,
    ) -> Result<bpf::Table<K, V>, KernelError> {
        let map = source.map(name)?;
        bpf::Table::new(map.as_fd())
            .map_err(|source| KernelError::System { what: format!("opening the map {name}"), source })
    }
    Ok(Maps {
        flow_ring: source.ring("FLOW_RING")?,
        cgroup_ring: source.ring("CGROUP_RING")?,
        dns_ring: source.ring("DNS_RING")?,
        flows: table(source, "FLOWS")?,
        counters: table(source, "COUNTERS")?,
        cgroup_losses: table(source, "CGROUP_LOSSES")?,
        cgroups: table(source, "CGROUPS")?,
        keys_inserted: table(source, "KEYS_INSERTED")?,
        keys_removed: table(source, "KEYS_REMOVED")?,
    })
}
