//! What earlier exports wrote down beside their policies, and what the inventory lists.

use std::{collections::BTreeSet, path::Path};

use anyhow::anyhow;
use guardrail_graph::{
    WorkloadRef,
    inventory::{Kind, Object},
};
use guardrail_policy::{
    emit::EVIDENCE_FILE,
    memory::{Memory, MemoryError},
};

use crate::input;

/// Largest `evidence.json`, bytes.
const MAX_BYTES: usize = 1 << 30;

/// Reads the evidence of the export in `directory`, and of those among other directories that are
/// exports.
///
/// # Errors
/// If it cannot be read, or is no evidence where an export is to be written.
pub(super) fn memory<'a>(
    directory: Option<&Path>,
    others: impl IntoIterator<Item = &'a Path>,
) -> anyhow::Result<Memory> {
    let mut memory = Memory::default();
    for (path, ours) in directory.map(|path| (path, true)).into_iter().chain(others.into_iter().map(|p| (p, false))) {
        let path = path.join(EVIDENCE_FILE);
        // Whoever reads a device or FIFO there would wait for it.
        if !path.is_file() {
            continue;
        }
        let name = path.to_string_lossy();
        let bytes = input::bytes(&name, MAX_BYTES)?;
        match Memory::read(&String::from_utf8_lossy(&bytes)) {
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
