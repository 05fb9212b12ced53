//! Facts of one edge.

use std::{collections::BTreeSet, sync::Arc};

use super::{BySource, Seen};
use crate::snapshot::{Side, Source, marks};

/// Facts of an edge. There may be 100,000 of them at once, so what few have stands apart.
#[derive(Clone, Debug, Default)]
pub(crate) struct EdgeFacts {
    pub(crate) sources: BySource,
    pub(crate) port_name: Option<Arc<str>>,
    rare: Option<Box<Rare>>,
}

/// What remote flows add to an edge.
#[derive(Clone, Debug, Default)]
pub(crate) struct ByMerge {
    pub(crate) sources: BySource,
    pub(crate) port_name: Option<Arc<str>>,
    pub(crate) marks: BTreeSet<String>,
    pub(crate) node_workloads: BTreeSet<String>,
}

/// What few edges have.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rare {
    pub(crate) client_names: BTreeSet<String>,
    pub(crate) server_names: BTreeSet<String>,
    pub(crate) via: BTreeSet<String>,
    pub(crate) marks: BTreeSet<String>,
    pub(crate) node_workloads: BTreeSet<String>,
    /// What remote flows add, computed anew each time.
    pub(crate) by_merge: ByMerge,
    /// An edge that came without counts per source: its numbers as they stood, who saw it, and
    /// whether it was supported.
    pub(crate) without_sources: Option<(Seen, BTreeSet<Side>, bool)>,
}

static NOTHING_RARE: Rare = Rare {
    client_names: BTreeSet::new(),
    server_names: BTreeSet::new(),
    via: BTreeSet::new(),
    marks: BTreeSet::new(),
    node_workloads: BTreeSet::new(),
    by_merge: ByMerge {
        sources: BySource::Nothing,
        port_name: None,
        marks: BTreeSet::new(),
        node_workloads: BTreeSet::new(),
    },
    without_sources: None,
};

impl EdgeFacts {
    pub(crate) fn rare(&self) -> &Rare {
        self.rare.as_deref().unwrap_or(&NOTHING_RARE)
    }

    pub(crate) fn rare_mut(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    /// Counts per source and side; one may come twice, of its own records and of remote flows.
    pub(in crate::snapshot) fn seen(&self) -> impl Iterator<Item = (&Arc<Source>, Side, &Seen)> {
        self.sources.iter().chain(self.rare().by_merge.sources.iter())
    }

    /// The sum at one side.
    pub(in crate::snapshot) fn at(&self, side: Side) -> Option<Seen> {
        Seen::sum(self.sources.at(side), self.rare().by_merge.sources.at(side))
    }

    /// Whether what was seen is set aside ([`marks::SET_ASIDE`]).
    pub(in crate::snapshot) fn is_set_aside(&self) -> bool {
        marks::set_aside(&self.rare().marks)
    }

    /// What is set aside gives way to anything else. False: nothing is to be added.
    pub(crate) fn gives_way(&mut self, to_set_aside: bool) -> bool {
        let is_new = self.sources.is_empty() && self.rare().without_sources.is_none();
        if is_new || self.is_set_aside() == to_set_aside {
            return true;
        }
        if !to_set_aside {
            *self = Self::default();
        }
        !to_set_aside
    }

    /// No record shows it.
    pub(in crate::snapshot) fn is_unseen(&self) -> bool {
        self.sources.is_empty() && self.rare().by_merge.sources.is_empty()
    }
}
