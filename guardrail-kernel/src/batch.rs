//! What the reading thread sends.

use guardrail_graph::observe::{Observation, OpenFlow};

use crate::checkpoint::Checkpoint;

/// What comes out of the channel.
#[derive(Debug)]
pub enum Batch {
    /// What was seen.
    Observations(Vec<Observation>),
    /// With pins, when asked ([`Kernel::checkpoint`](crate::Kernel::checkpoint)) and at the end:
    /// how far the observations before this one reach. Store it with the graph that they made, then
    /// say so ([`Kernel::stored`](crate::Kernel::stored)).
    Checkpoint(Box<Checkpoint>, Mark),
    /// When asked ([`Kernel::turn`](crate::Kernel::turn)): every entry was read just now, and what
    /// comes after this is of the next epoch.
    Turn {
        /// Every entry with connections that are open.
        open: Vec<OpenFlow>,
        /// With pins, as [`Batch::Checkpoint`].
        checkpoint: Option<(Box<Checkpoint>, Mark)>,
    },
}

/// An instant of the stream of observations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Last note of the journal before it.
    pub(crate) journal: u64,
    /// Entries taken out without a note before it.
    pub(crate) unjournalled: u64,
}
