//! One owner's time with an address, and what is sure of it.

use std::time::Duration;

use crate::time::Timestamp;

/// Ends are exclusive: a proof at an instant needs an end just after it.
pub(super) const TICK: Duration = Duration::from_nanos(1);

/// A time during which an owner had an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tenure<O> {
    /// The owner.
    pub owner: O,
    /// Start; [`Timestamp::MIN`]: before anything that was watched.
    pub from: Timestamp,
    /// End (exclusive); [`Timestamp::MAX`]: still.
    pub to: Timestamp,
    /// First and last instant at which a record of ours showed it.
    pub proven: Option<(Timestamp, Timestamp)>,
    /// The owner did not exist before; [`Timestamp::MIN`]: not known.
    pub born: Timestamp,
    /// How sure the end is.
    pub end: EndBasis,
    /// It may have begun as early as this, if the word of it came late.
    pub since: Timestamp,
    /// First and last instant at which it is beyond doubt that the owner had it, if it had it at
    /// all: a watch that broke tells of changes long after them.
    pub sure: (Timestamp, Timestamp),
    /// The doubt before the first of these reaches back to here: until then the watch told.
    pub silent: Timestamp,
}

/// How late the word of an owner may have come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Late {
    /// The owner may have had the address since then.
    pub since: Timestamp,
    /// It has had it since then at latest. [`Timestamp::MIN`]: nothing is in doubt.
    pub sure: Timestamp,
}

impl<O> Tenure<O> {
    /// A tenure of which only the API server's word is known.
    #[must_use]
    pub fn told(owner: O, from: Timestamp, to: Timestamp) -> Self {
        Self {
            owner,
            from,
            to,
            proven: None,
            born: Timestamp::MIN,
            end: EndBasis::Told,
            since: from,
            sure: (Timestamp::MIN, Timestamp::MAX),
            silent: Timestamp::MIN,
        }
    }

    /// The earliest beginning that the word of it allows.
    pub(super) fn earliest(&self) -> Timestamp {
        self.since.min(self.from)
    }

    pub(super) fn is_proven(&self, at: Timestamp) -> bool {
        self.proven.is_some_and(|(first, last)| first <= at && at <= last)
    }

    /// Whether a watch may have told of a change at this instant without saying when it was.
    pub(super) fn is_doubtful(&self, at: Timestamp) -> bool {
        (self.silent <= at && at < self.sure.0 || self.sure.1 < at) && !self.is_proven(at)
    }

    /// Whether it was there, beyond doubt and without any allowance for times that are not exact.
    pub(super) fn is_sure(&self, at: Timestamp) -> bool {
        !self.is_doubtful(at) && self.earliest() <= at && at < self.to
    }

    pub(super) fn last_proof(&self) -> Timestamp {
        self.proven.map_or(Timestamp::MIN, |(_, last)| last)
    }

    pub(super) fn add_proof(&mut self, at: Timestamp) {
        self.proven = Some(self.proven.map_or((at, at), |(a, b)| (a.min(at), b.max(at))));
        self.born = self.born.min(at);
        self.from = self.from.min(at);
    }

    /// Whether it may have begun by `at`, if its start is `doubt` wide.
    pub(super) fn begun(&self, at: Timestamp, doubt: Duration) -> bool {
        self.earliest().before(doubt).max(self.born) <= at
    }

    /// Whether it may still last at `at`.
    pub(super) fn lasts(&self, at: Timestamp, guard: Duration) -> bool {
        match self.end {
            _ if self.to == Timestamp::MAX => true,
            EndBasis::Proven => at < self.to,
            EndBasis::Told | EndBasis::Overruled => at <= self.to.after(guard),
        }
    }
}

/// What a tenure's end rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndBasis {
    /// It lasts, or ended by the API server's word: exact to within the guard.
    Told,
    /// A record of another owner ended it. The API server may still repeat what was true before;
    /// that does not bring it back.
    Overruled,
    /// The owner was gone, to the instant. Nothing that the API server repeats brings it back.
    Proven,
}

/// What the index says of an address at an instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup<O> {
    /// Nobody ever had it.
    Unknown,
    /// Somebody had it, nobody at that time.
    Vacant,
    /// One owner.
    Owner(O),
    /// Several owners are possible: these, and where a watch was silent others that it never told
    /// of.
    Ambiguous(Vec<O>),
}
