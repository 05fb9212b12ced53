//! With `--pin`, what belongs to a stored graph: how much of the kernel's counters it holds, the
//! flows that still waited for their pod, and the pods that were there, which may be gone before
//! another agent asks for them.
//!
//! A file of its own beside the state, named by the end of the graph's window: it is written before
//! the state and found by what the state says, so that the two always belong together, also after a
//! crash between them.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use guardrail_graph::{Observer, Timestamp, observe::FlowDelta, observer::OwnPod};

use guardrail_kernel::Checkpoint;
use serde::{Deserialize, Serialize};

use crate::files::{self, FileError};

const PREFIX: &str = "state.progress-";

/// How far a graph is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Of the kernel's counters.
    pub checkpoint: Checkpoint,
    /// What else the next agent has to know.
    pub rest: Rest,
}

/// What an observer knows that its graph does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rest {
    /// Counted by the kernel, but not in the graph yet.
    pub waiting: Vec<FlowDelta>,
    /// Pods of this node, with those that went within the last hour.
    pub pods: Vec<OwnPod>,
}

impl Rest {
    /// What this one knows now.
    #[must_use]
    pub fn of(observer: &Observer) -> Self {
        Self { waiting: observer.waiting(), pods: observer.own_pods() }
    }
}

fn path(dir: &Path, at: Timestamp) -> PathBuf {
    dir.join(format!("{PREFIX}{}", at.as_unix_ns()))
}

impl Progress {
    /// Writes what belongs to the graph whose window ends at `at`.
    ///
    /// # Errors
    /// If it cannot be written; then nothing changed.
    pub fn write(&self, dir: &Path, at: Timestamp) -> Result<(), FileError> {
        let rest = serde_json::to_vec(&self.rest).unwrap_or_default();
        let mut bytes = (rest.len() as u64).to_ne_bytes().to_vec();
        bytes.extend(rest);
        // Into memory: it does not fail.
        let _ = self.checkpoint.write(&mut bytes);
        files::replace(&path(dir, at), [bytes])
    }

    /// What belongs to the graph whose window ends at `at`; `None` if there is nothing.
    ///
    /// # Errors
    /// A sentence: it is there and cannot be used.
    pub fn read(dir: &Path, at: Timestamp) -> Result<Option<Self>, String> {
        let path = path(dir, at);
        let name = path.display();
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(format!("cannot read {name}: {error}")),
        };
        let cut = || format!("{name} is cut short");
        let (length, rest) = bytes.split_first_chunk().ok_or_else(cut)?;
        let length = usize::try_from(u64::from_ne_bytes(*length)).unwrap_or(usize::MAX);
        let (rest, checkpoint) = rest.split_at_checked(length).ok_or_else(cut)?;
        Ok(Some(Self {
            checkpoint: Checkpoint::from_bytes(checkpoint).map_err(|error| format!("{name}: {error}"))?,
            rest: serde_json::from_slice(rest).map_err(|error| format!("{name}: {error}"))?,
        }))
    }

    /// Removes what belongs to other graphs than the one whose window ends at `at`.
    pub fn remove_others(dir: &Path, at: Timestamp) {
        let keep = path(dir, at);
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let ours = entry.file_name().to_string_lossy().starts_with(PREFIX)
                && entry.file_type().is_ok_and(|kind| kind.is_file() || kind.is_symlink());
            if ours && entry.path() != keep {
                // One that stays is never read again.
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use guardrail_graph::{
        Peer,
        observe::{CgroupId, FlowCounts, Remote, Role},
        peer::Protocol,
    };

    use super::*;

    fn progress() -> Progress {
        let waiting = FlowDelta {
            cgroup: CgroupId(1),
            netns: None,
            local: "10.0.0.1".parse().unwrap(),
            remote: Remote::Addr("2001:db8::1".parse().unwrap()),
            protocol: Protocol::Tcp,
            role: Role::Client,
            server_port: 80,
            local_port: None,
            bind_seen: false,
            first_open: Some(Timestamp::from_unix_ns(5)),
            last_open: None,
            counts: FlowCounts { opened: 3, ..FlowCounts::default() },
        };
        let many = FlowDelta { remote: Remote::Many, ..waiting.clone() };
        let pod = OwnPod {
            uid: "u-1".to_owned(),
            config_hash: None,
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
            peer: Peer::Node { name: "node-a".to_owned() },
            node_workload: Some("shop/DaemonSet/web".to_owned()),
            host_network: true,
            addresses: vec!["10.0.0.1".parse().unwrap()],
        };
        let rest = Rest { waiting: vec![waiting, many], pods: vec![pod] };
        Progress { checkpoint: Checkpoint::default(), rest }
    }

    #[test]
    fn what_belongs_to_a_graph_is_found_by_the_end_of_its_window_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let (early, late) = (Timestamp::from_unix_ns(7), Timestamp::from_unix_ns(8));
        progress().write(dir.path(), early).unwrap();
        assert_eq!(Progress::read(dir.path(), early), Ok(Some(progress())));
        assert_eq!(Progress::read(dir.path(), late), Ok(None));
        progress().write(dir.path(), late).unwrap();
        Progress::remove_others(dir.path(), late);
        assert_eq!(Progress::read(dir.path(), early), Ok(None));
        assert_eq!(Progress::read(dir.path(), late), Ok(Some(progress())));
    }

    #[test]
    fn a_cut_file_is_a_sentence() {
        let dir = tempfile::tempdir().unwrap();
        let at = Timestamp::from_unix_ns(7);
        progress().write(dir.path(), at).unwrap();
        let path = path(dir.path(), at);
        let bytes = fs::read(&path).unwrap();
        for length in 0..bytes.len() {
            fs::write(&path, &bytes[..length]).unwrap();
            let error = Progress::read(dir.path(), at).unwrap_err();
            assert!(error.contains("state.progress-7"), "{length}: {error}");
        }
    }
}
