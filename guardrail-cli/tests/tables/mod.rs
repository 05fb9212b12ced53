//! Where truth tables lie.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Directories below `directory` that hold a truth table (`expected.csv`), in order.
pub(crate) fn cases(directory: &Path, found: &mut Vec<PathBuf>) {
    if directory.join("expected.csv").is_file() {
        found.push(directory.to_path_buf());
    }
    let mut entries: Vec<PathBuf> =
        fs::read_dir(directory).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect();
    entries.sort();
    for entry in entries {
        cases(&entry, found);
    }
}
