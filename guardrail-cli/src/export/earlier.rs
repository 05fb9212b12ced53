//! What earlier exports wrote down beside their policies, and what the inventory lists.

use std::{collections::BTreeSet, path::Path};

use anyhow::anyhow;
use guardrail_graph::{
    Snapshot, WorkloadRef,
    inventory::{Kind, Object},
};
use guardrail_policy::{
    emit::EVIDENCE_FILE,
    memory::{Memory, MemoryError, Shown},
};

use crate::input;

/// Largest `evidence.json`, bytes.
const MAX_BYTES: usize = 1 << 30;

/// Reads the evidence of the export in `directory`, and of those among other directories that are
/// exports: the edges that the snapshot does not show.
///
/// # Errors
/// If it cannot be read, or is no evidence where an export is to be written.
pub(super) fn memory<'a>(
    directory: Option<&Path>,
    others: impl IntoIterator<Item = &'a Path>,
    snapshot: &Snapshot,
) -> anyhow::Result<Memory> {
    let (mut memory, mut shown) = (Memory::default(), None);
    for (path, ours) in directory.map(|path| (path, true)).into_iter().chain(others.into_iter().map(|p| (p, false))) {
        let path = path.join(EVIDENCE_FILE);
        // Whoever reads a device or FIFO there would wait for it.
        if !path.is_file() {
            continue;
        }
        let name = path.to_string_lossy();
        let bytes = input::bytes(&name, MAX_BYTES)?;
        let shown = shown.get_or_insert_with(|| Shown::of(snapshot));
        match Memory::read_unshown(&String::from_utf8_lossy(&bytes), shown) {
            Ok(read) => memory.join(read),
            Err(MemoryError::WrongKind) if !ours => {}
            Err(error) => {
                return Err(anyhow!(
                    "{name}: {error}: restore it, or remove it and with it the memory of what earlier exports allowed"
                ));
            }
        }
    }
    Ok(memory)
}

/// Workloads that are listed themselves, or as pods without an owner.
pub(super) fn listed(objects: &[Object]) -> BTreeSet<WorkloadRef> {
    let keys = objects.iter().map(Object::key);
    keys.filter_map(|key| {
        let owner = match key.kind {
            Kind::Controller(kind) => kind,
            Kind::Pod => "Pod".to_owned(),
            _ => return None,
        };
        Some(WorkloadRef { namespace: key.namespace, owner, name: key.name })
    })
    .collect()
}
