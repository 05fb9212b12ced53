//! List and watch of one resource, for ever.
//!
//! ```text
//! no version ─► streamed or paged list ─► what differs ─► watch from its version ─► Apply, Delete
//!     ▲                                                         │ 410, or an event that is none
//!     └─────────────────────────────────────────────────────────┘
//! ```
//! A stream that ends or breaks is continued where it stood. Only a version that the server no
//! longer knows costs a new list. When a server answers a streaming list with anything but the
//! list, the lists of that resource are read page by page for a while: servers whose storage cannot
//! stream accept the request and fail inside the stream, each time.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    sync::Arc,
    time::{Duration, Instant},
};

use guardrail_graph::{
    Timestamp,
    inventory::{Change, Object, ObjectKey},
};
use serde_json::value::RawValue;
use tokio::sync::mpsc;

use super::{
    Options, Timing,
    backoff::{Backoff, Relists, spread},
    decode::{self, Event, Head},
    known::{Known, Novelty, content},
    lines::{Lines, TooLong},
    policies::{Policies, ReadPolicy},
    status::{ListState, Outcome, Status, wall_clock},
};
use crate::{Api, Failure, Resource, client::page_path, text::escaped};

/// What the server is asked for.
const JSON: &str = "application/json";
/// Metadata alone, else (from a server that does not know the form) whole objects.
const METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json";

/// Why a stream or a list ended.
enum Ended {
    Failed(Failure),
    /// Metadata is not enough for this resource: list whole objects.
    NeedsSpec,
    /// Nobody receives the changes any more.
    Closed,
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<TooLong> for Ended {
    fn from(_: TooLong) -> Self {
        Self::Failed(Failure::TooLarge)
    }
}

/// What one request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The list as the first events of a watch (KEP-3157).
    StreamedList,
    /// The list page by page.
    PagedList,
    /// What happens from the known version on.
    Watch,
}

/// A trimmed object.
#[derive(Debug)]
pub(crate) enum Trimmed<P> {
    Object(Object),
    Policy(P),
}

/// A list that is being read.
struct Listing<P> {
    known: Vec<(Box<str>, Option<u64>, u64)>,
    /// Objects that are not known as they are.
    objects: Vec<Object>,
    policies: BTreeMap<String, P>,
    /// Objects that made no sense.
    invalid: Vec<String>,
}

impl<P> Default for Listing<P> {
    fn default() -> Self {
        Self { known: Vec::new(), objects: Vec::new(), policies: BTreeMap::new(), invalid: Vec::new() }
    }
}

pub(super) struct Watcher<P> {
    resource: Resource,
    api: Arc<Api>,
    changes: mpsc::Sender<Vec<Change>>,
    status: Arc<Status>,
    policies: Arc<Policies<P>>,
    timing: Timing,
    /// Query part that narrows the list; empty or starting with `&`.
    selector: String,
    page: u32,
    /// Until then lists are read page by page, because a streaming list failed.
    paged_until: Option<Instant>,
    /// The server answered the last request, with a status or with a stream.
    is_answered: bool,
    /// Ask for metadata alone.
    metadata_only: bool,
    /// Where the watch goes on; `None`: list first.
    version: Option<String>,
    known: Known,
    backoff: Backoff,
    relists: Relists,
    /// Since when nothing works, before the first list.
    waiting_since: Instant,
    /// The missing permission or resource that was last logged.
    logged_denial: Option<String>,
    /// Whoever takes the changes knows that this watch broke, and not yet that it caught up.
    is_interrupted: bool,
    /// The server sends bookmarks.
    has_bookmarks: bool,
}

impl<P: Clone + Debug> Watcher<P> {
    pub(super) fn new(
        resource: Resource,
        options: &Options,
        api: Arc<Api>,
        changes: mpsc::Sender<Vec<Change>>,
        status: Arc<Status>,
        policies: Arc<Policies<P>>,
    ) -> Self {
        let Options { pods_of_node, page, timing } = options;
        let selector = match (pods_of_node, resource) {
            (Some(node), Resource::Pods) => format!("&fieldSelector=spec.nodeName%3D{node}"),
            _ => String::new(),
        };
        Self {
            resource,
            api,
            changes,
            status,
            policies,
            timing: *timing,
            selector,
            page: (*page).max(1),
            paged_until: None,
            is_answered: false,
            metadata_only: resource.metadata_first(),
            version: None,
            known: Known::default(),
            backoff: Backoff::new(timing.backoff, timing.backoff_max),
            relists: Relists::new(timing.backoff, timing.backoff_max),
            waiting_since: Instant::now(),
            logged_denial: None,
            is_interrupted: false,
            has_bookmarks: false,
        }
    }

    /// Ends only when nobody receives the changes any more.
    pub(super) async fn run(mut self) {
        loop {
            let began = Instant::now();
            let step = self.step();
            self.is_answered = false;
            let ended = match step {
                Step::PagedList => self.list().await,
                Step::StreamedList | Step::Watch => self.stream().await,
            };
            match ended {
                Ok(()) => {
                    self.backoff.reset();
                    // A server that ends every watch at once must not be asked without end.
                    if step == Step::Watch && began.elapsed() < Duration::from_secs(1) {
                        tokio::time::sleep(self.backoff.next()).await;
                    }
                }
                Err(Ended::Closed) => return,
                Err(Ended::NeedsSpec) => {
                    tracing::info!(resource = self.resource.as_str(), "some have no owner: reading them whole");
                    self.metadata_only = false;
                    self.version = None;
                }
                Err(Ended::Failed(failure)) => {
                    let wait = self.failed(&failure, step);
                    if self.interrupt().await.is_err() {
                        return;
                    }
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }

    /// Whether this resource tells who has which address: then whoever takes the changes needs to
    /// know how far it has told.
    fn names_addresses(&self) -> bool {
        matches!(self.resource, Resource::Nodes | Resource::Pods)
    }

    /// Everything before has been told.
    fn told(&mut self, at: Timestamp, batch: &mut Vec<Change>) {
        if self.names_addresses() {
            self.is_interrupted = false;
            batch.push(Change::Heard { kind: self.resource.kind(), at });
        }
    }

    /// Says once that what comes next may be old.
    async fn interrupt(&mut self) -> Result<(), Ended> {
        if !self.names_addresses() || std::mem::replace(&mut self.is_interrupted, true) {
            return Ok(());
        }
        self.hand_on(vec![Change::Interrupted { kind: self.resource.kind() }]).await
    }

    fn step(&self) -> Step {
        match (&self.version, self.paged_until) {
            (Some(_), _) => Step::Watch,
            (None, Some(until)) if Instant::now() < until => Step::PagedList,
            (None, _) => Step::StreamedList,
        }
    }

    /// Reads lists page by page for a while.
    fn page_lists(&mut self) {
        self.paged_until = Some(Instant::now() + self.timing.paged);
    }

    /// Whether a failure of a streaming list says that the server cannot stream it. A connection
    /// that was never there, and credentials that are refused, say nothing of the kind.
    fn is_about_streaming(&self, failure: &Failure) -> bool {
        match failure {
            Failure::Unauthorized => false,
            Failure::Transport(_) => self.is_answered,
            _ => true,
        }
    }

    /// Records a failure. Decides how to go on, and how long to wait before that.
    fn failed(&mut self, failure: &Failure, step: Step) -> Duration {
        self.status.failed(self.resource, failure);
        let pages_instead = step == Step::StreamedList && self.is_about_streaming(failure);
        if pages_instead {
            self.page_lists();
            tracing::debug!(resource = self.resource.as_str(), "no streaming list, reading pages: {failure}");
        }
        let mut wait = match failure {
            // A server before 1.27, without the feature, or with a rule of its own for watches. The
            // request failed, not the server.
            Failure::Refused { .. } | Failure::Forbidden(_) | Failure::NotServed if pages_instead => {
                return Duration::ZERO;
            }
            Failure::Forbidden(_) | Failure::NotServed => spread(self.timing.denied),
            // The server works and needs another request.
            Failure::Expired => self.relists.expired(),
            Failure::Malformed(_) | Failure::TooLarge | Failure::Refused { .. } => self.relists.next(),
            _ => self.backoff.next(),
        };
        match failure {
            Failure::Expired | Failure::Malformed(_) | Failure::Refused { .. } => self.version = None,
            // Without bookmarks only a list says how far it has told.
            Failure::Stalled if self.names_addresses() && !self.has_bookmarks => self.version = None,
            Failure::TooLarge => {
                self.version = None;
                self.page_lists();
                self.page = (self.page / 2).max(1);
            }
            _ => {}
        }
        if let Some(asked) = failure.retry_after() {
            wait = wait.max(spread(asked));
        }
        self.report(failure, step);
        wait
    }

    /// Logs a failure, and tells readiness when it is of no use to wait.
    fn report(&mut self, failure: &Failure, step: Step) {
        let (resource, group) = (self.resource.as_str(), self.resource.group());
        let dot = if group.is_empty() { "" } else { "." };
        let denied = matches!(failure, Failure::Forbidden(_) | Failure::NotServed);
        let reason = match failure {
            Failure::Forbidden(said) => {
                let verb = if step == Step::PagedList { "list" } else { "watch" };
                format!(
                    "{resource}{dot}{group}: the service account may not {verb} them; grant get, list and watch ({said})"
                )
            }
            other => format!("{resource}{dot}{group}: {other}"),
        };
        let waited = self.waiting_since.elapsed();
        match self.status.state(self.resource) {
            ListState::Synced if denied => self.status.set(self.resource, ListState::Outdated(reason.clone())),
            ListState::Pending | ListState::GivenUp(_) if denied => {
                self.status.set(self.resource, ListState::Denied(reason.clone()));
            }
            ListState::Pending if waited >= self.timing.patience => {
                self.status.set(self.resource, ListState::GivenUp(reason.clone()));
            }
            _ => {}
        }
        if !denied {
            self.status.log_failure(self.resource, &reason);
        } else if self.logged_denial.as_ref() != Some(&reason) {
            tracing::warn!("{reason}");
            self.logged_denial = Some(reason);
        }
    }

    /// The server works again: a list is complete, or a watch goes on.
    fn worked(&mut self) {
        self.backoff.reset();
        self.logged_denial = None;
        self.status.log_success(self.resource);
        self.status.heard(self.resource);
        if matches!(self.status.state(self.resource), ListState::Outdated(_)) {
            self.status.set(self.resource, ListState::Synced);
        }
    }

    fn accept(&self) -> &'static str {
        if self.metadata_only { METADATA } else { JSON }
    }

    /// Reads the whole list page by page.
    async fn list(&mut self) -> Result<(), Ended> {
        let mut listing = Listing::default();
        let mut next: Option<String> = None;
        // What happens while pages are read is in none of them.
        let began = wall_clock();
        loop {
            let path = format!("{}?limit={}{}", self.resource.path(), self.page, self.selector);
            let path = page_path(path, next.as_deref());
            let bytes = self.api.get(&path, self.accept(), self.timing.answer).await?.whole(self.timing.page).await?;
            let page = decode::page(&bytes)?;
            for item in page.items {
                self.gather(item, &mut listing)?;
            }
            self.status.heard(self.resource);
            next = page.next;
            if next.is_none() {
                let mut batch = Vec::new();
                self.take(listing, page.version, &mut batch);
                self.told(began, &mut batch);
                self.hand_on(batch).await?;
                self.status.listed(self.resource);
                self.worked();
                return Ok(());
            }
        }
    }

    /// Follows a watch until it ends: from the known version, or with the whole list first.
    async fn stream(&mut self) -> Result<(), Ended> {
        let limit = spread(self.timing.watch).as_secs().max(1);
        let mut path = format!(
            "{}?watch=1&allowWatchBookmarks=true&timeoutSeconds={limit}{}",
            self.resource.path(),
            self.selector
        );
        let mut listing = match &self.version {
            Some(version) => {
                path += "&resourceVersion=";
                path.extend(escaped(version));
                None
            }
            None => {
                path += "&sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
                Some(Listing::default())
            }
        };
        let began = wall_clock();
        let mut answer = self.api.get(&path, self.accept(), self.timing.answer).await?;
        self.is_answered = true;
        let mut lines = Lines::default();
        while let Some(piece) = answer.piece(self.timing.stall).await? {
            let mut batch = Vec::new();
            let was_listing = listing.is_some();
            let result = lines.push(&piece, |line| self.line(line, (&mut listing, began), &mut batch));
            // The lines before a malformed one are valid.
            self.hand_on(batch).await?;
            if was_listing && listing.is_none() {
                self.status.listed(self.resource);
            }
            result?;
            // Part of a list is no success yet: the server may fail at the same object each time.
            match listing {
                Some(_) => self.status.heard(self.resource),
                None => self.worked(),
            }
            if !was_listing {
                self.relists.reset();
            }
        }
        if lines.is_partial() || listing.is_some() { Err(Failure::Cut.into()) } else { Ok(()) }
    }

    /// Takes one line of a watch that was asked for at `began`. While `listing` is `Some`, the
    /// first list is not complete.
    fn line(
        &mut self,
        line: &[u8],
        (listing, began): (&mut Option<Listing<P>>, Timestamp),
        batch: &mut Vec<Change>,
    ) -> Result<(), Ended> {
        if line.iter().all(u8::is_ascii_whitespace) {
            return Ok(());
        }
        match decode::event(line)? {
            Event::Failed(failure) => return Err(failure.into()),
            Event::Bookmark { version, initial_end } => match listing.take() {
                Some(complete) if initial_end => {
                    self.take(complete, version, batch);
                    self.told(began, batch);
                }
                Some(incomplete) => *listing = Some(incomplete),
                None => {
                    (self.version, self.has_bookmarks) = (Some(version), true);
                    self.told(wall_clock(), batch);
                }
            },
            Event::Applied(raw) => match listing {
                Some(listing) => self.gather(raw, listing)?,
                None => self.apply(raw, batch)?,
            },
            Event::Deleted(raw) if listing.is_none() => self.delete(raw, batch),
            // A server sends no deletion between the first events and their end. One that does is
            // asked again.
            Event::Deleted(_) => return Err(Failure::Malformed("a deletion inside the first list".to_owned()).into()),
        }
        Ok(())
    }

    async fn hand_on(&mut self, batch: Vec<Change>) -> Result<(), Ended> {
        if !batch.is_empty() {
            self.changes.send(batch).await.map_err(|_| Ended::Closed)?;
        }
        Ok(())
    }

    /// Adds an object to a list.
    fn gather(&mut self, raw: &RawValue, listing: &mut Listing<P>) -> Result<(), Ended> {
        let Some(head) = self.head(raw) else { return Ok(()) };
        match self.trim(raw, &head)? {
            None => listing.invalid.push(head.name),
            Some(trimmed) => {
                let hash = content(&trimmed);
                let is_changed = !self.known.holds(&head.name, hash);
                listing.known.push((head.name.as_str().into(), head.number(), hash));
                match trimmed {
                    // A later list holds no second copy of the objects that are known.
                    Trimmed::Object(object) if is_changed => listing.objects.push(object),
                    Trimmed::Object(_) => {}
                    Trimmed::Policy(policy) => {
                        listing.policies.insert(head.name, policy);
                    }
                }
            }
        }
        Ok(())
    }

    /// Takes a complete list as one batch for the observer. The first list replaces everything; a
    /// later one becomes the changes since.
    fn take(&mut self, listing: Listing<P>, version: String, batch: &mut Vec<Change>) {
        let Listing { known, objects, policies, invalid } = listing;
        let count = objects.len() + policies.len();
        // An object that is listed but malformed is not gone: it stays as it was known.
        let kept: Vec<String> = invalid.into_iter().filter(|name| self.known.is_alive(name)).collect();
        if self.resource == Resource::NetworkPolicies {
            self.policies.replace(policies, &kept);
        } else if self.known.is_empty() {
            batch.push(Change::Replace { kind: self.resource.kind(), objects });
        } else {
            let listed: std::collections::HashSet<&str> =
                known.iter().map(|(name, ..)| &**name).chain(kept.iter().map(String::as_str)).collect();
            let gone =
                self.known.alive().filter(|name| !listed.contains(name)).map(|name| Change::Delete(self.key(name)));
            batch.extend(gone.chain(objects.into_iter().map(Change::Apply)));
        }
        // The hash 0 equals no content, so the next valid version of what was kept counts as a
        // change.
        self.known.replace(known.into_iter().chain(kept.into_iter().map(|name| (name.into(), None, 0))));
        tracing::debug!(resource = self.resource.as_str(), count, version, "list complete");
        self.version = Some(version);
    }

    fn apply(&mut self, raw: &RawValue, batch: &mut Vec<Change>) -> Result<(), Ended> {
        let Some(head) = self.head(raw) else { return Ok(()) };
        let trimmed = self.trim(raw, &head)?;
        self.advance(&head);
        let Some(trimmed) = trimmed else { return Ok(()) };
        let outcome = match self.known.applied(&head.name, head.number(), content(&trimmed)) {
            Novelty::Unchanged => Outcome::Unchanged,
            Novelty::Stale => Outcome::Stale,
            Novelty::Changed => {
                match trimmed {
                    Trimmed::Object(object) => batch.push(Change::Apply(object)),
                    Trimmed::Policy(policy) => self.policies.apply(&head.name, policy),
                }
                Outcome::Applied
            }
        };
        self.status.count(self.resource, outcome);
        Ok(())
    }

    fn delete(&mut self, raw: &RawValue, batch: &mut Vec<Change>) {
        let Some(head) = self.head(raw) else { return };
        self.advance(&head);
        let outcome = if self.known.deleted(&head.name, head.number()) {
            if self.resource == Resource::NetworkPolicies {
                self.policies.delete(&head.name);
            } else {
                batch.push(Change::Delete(self.key(&head.name)));
            }
            Outcome::Deleted
        } else {
            Outcome::Stale
        };
        self.status.count(self.resource, outcome);
    }

    /// Moves the version from which the watch continues behind this event. A late event does not
    /// move it back.
    fn advance(&mut self, head: &Head<'_>) {
        let number = |version: &Option<String>| version.as_deref().and_then(|v| v.parse::<u64>().ok());
        if let (Some(now), Some(new)) = (number(&self.version), head.number())
            && new < now
        {
            return;
        }
        if let Some(version) = &head.version {
            self.version = Some(version.clone());
        }
    }

    fn head<'a>(&self, raw: &'a RawValue) -> Option<Head<'a>> {
        match decode::head(raw) {
            Ok(head) => Some(head),
            Err(e) => {
                self.invalid("without a readable name", &e);
                None
            }
        }
    }

    fn invalid(&self, name: &str, error: &str) {
        self.status.count(self.resource, Outcome::Invalid);
        tracing::warn!(resource = self.resource.as_str(), name, "an object that makes no sense was skipped: {error}");
    }

    /// The part of an object that is kept, `None` if it makes no sense.
    fn trim(&self, raw: &RawValue, head: &Head<'_>) -> Result<Option<Trimmed<P>>, Ended> {
        match trimmed(self.resource, raw, head, self.policies.reader()) {
            Ok(Trimmed::Object(Object::Controller(c))) if head.is_metadata_only() && c.controller.is_none() => {
                Err(Ended::NeedsSpec)
            }
            Ok(trimmed) => Ok(Some(trimmed)),
            Err(e) => {
                self.invalid(&head.name, &e);
                Ok(None)
            }
        }
    }

    fn key(&self, name: &str) -> ObjectKey {
        let (namespace, name) = name.split_once('/').unwrap_or(("", name));
        ObjectKey { kind: self.resource.kind(), namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

/// The part of an object that is kept.
///
/// # Errors
/// Why it makes no sense.
pub(crate) fn trimmed<P>(
    resource: Resource,
    raw: &RawValue,
    head: &Head<'_>,
    read_policy: ReadPolicy<P>,
) -> Result<Trimmed<P>, String> {
    if resource == Resource::NetworkPolicies {
        let document = decode::with_kind(raw, "networking.k8s.io/v1", "NetworkPolicy")?;
        return read_policy(&head.name, &document).map(Trimmed::Policy);
    }
    match decode::object(raw, head, resource)? {
        Some(object) => Ok(Trimmed::Object(object)),
        None => Err("it is of another kind".to_owned()),
    }
}
