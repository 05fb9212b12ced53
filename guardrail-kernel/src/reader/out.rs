//! The way out of the reading thread: observations in batches of bounded size, on a channel of a
//! bounded number of batches.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use guardrail_graph::observe::Observation;
use tokio::sync::mpsc::{Sender, error::TrySendError};

use crate::batch::Batch;

/// Most observations in a batch.
pub(crate) const BATCH: usize = 1024;
/// A batch with so many bytes of text (paths, names and their addresses) takes no further
/// observation: pods choose how long these are.
pub(crate) const BATCH_TEXT: usize = 64 << 10;
/// How often a full channel is tried again.
pub(super) const RETRY: Duration = Duration::from_millis(2);

/// Where observations go.
pub(crate) struct Out {
    channel: Sender<Batch>,
    batch: Vec<Observation>,
    /// Bytes of text in the batch.
    text: usize,
    /// Nobody will receive any more: do not wait for room.
    abandoned: Arc<AtomicBool>,
}

impl Out {
    pub(crate) fn new(channel: Sender<Batch>, abandoned: Arc<AtomicBool>) -> Self {
        Self { channel, batch: Vec::new(), text: 0, abandoned }
    }

    pub(super) fn push(&mut self, observation: Observation) {
        self.text += text(&observation);
        self.batch.push(observation);
        if self.batch.len() >= BATCH || self.text >= BATCH_TEXT {
            self.send();
        }
    }

    /// Waits while the channel is full: rings fill meanwhile, which is a counted loss of hints
    /// only.
    pub(super) fn send(&mut self) {
        if !self.batch.is_empty() {
            let batch = std::mem::take(&mut self.batch);
            self.text = 0;
            self.deliver(Batch::Observations(batch));
        }
    }

    pub(super) fn deliver(&self, mut batch: Batch) {
        loop {
            match self.channel.try_send(batch) {
                Ok(()) | Err(TrySendError::Closed(_)) => return,
                Err(TrySendError::Full(_)) if self.abandoned.load(Ordering::Acquire) => return,
                Err(TrySendError::Full(again)) => {
                    batch = again;
                    std::thread::sleep(RETRY);
                }
            }
        }
    }
}

/// Bytes that an observation holds beyond its own size.
fn text(observation: &Observation) -> usize {
    match observation {
        Observation::CgroupCreated { path, .. } => path.capacity(),
        Observation::DnsAnswer { name, addresses, .. } => name.capacity() + addresses.capacity() * size_of::<IpAddr>(),
        Observation::Flow(_)
        | Observation::CgroupRemoved { .. }
        | Observation::Listening { .. }
        | Observation::Lost { .. } => 0,
    }
}

#[cfg(test)]
mod tests {
    use guardrail_graph::{
        observe::{CgroupId, LossReason},
        time::Timestamp,
    };
    use tokio::sync::mpsc;

    use super::*;

    /// Sends these; the batches that come of it.
    fn batches(observations: impl IntoIterator<Item = Observation>) -> Vec<Vec<Observation>> {
        let (channel, mut received) = mpsc::channel(64);
        let mut out = Out::new(channel, Arc::default());
        observations.into_iter().for_each(|observation| out.push(observation));
        out.send();
        drop(out);
        std::iter::from_fn(|| received.blocking_recv())
            .map(|batch| match batch {
                Batch::Observations(batch) => batch,
                Batch::Checkpoint(..) | Batch::Turn { .. } => panic!("nobody asked for one"),
            })
            .collect()
    }

    fn answer() -> Observation {
        let addresses = vec![IpAddr::from([192, 0, 2, 1]); 70];
        let name = "a".repeat(250);
        Observation::DnsAnswer { cgroup: CgroupId(1), name, addresses, at: Timestamp::from_unix_ns(1) }
    }

    #[test]
    fn a_batch_is_bounded_in_observations_and_in_bytes_of_text_and_none_is_left_out() {
        let lost =
            Observation::Lost { reason: LossReason::Decode, cgroup: None, count: 1, at: Timestamp::from_unix_ns(1) };
        let small = batches(vec![lost; 2 * BATCH + 1]);
        assert_eq!(small.iter().map(Vec::len).collect::<Vec<_>>(), [BATCH, BATCH, 1]);
        let large = batches(vec![answer(); 2 * BATCH]);
        assert_eq!(large.iter().map(Vec::len).sum::<usize>(), 2 * BATCH);
        for batch in &large {
            let bytes: usize = batch.iter().map(text).sum();
            assert!(bytes < BATCH_TEXT + text(&answer()), "{bytes} bytes of text in {} observations", batch.len());
        }
    }
}
