//! What every lab stands on: a name, a cgroup and a directory of its own. Dropping it removes them
//! with all that is in them.

use std::{fs, path::PathBuf, thread};

use anyhow::{Context as _, Result};

use super::cleanup;

/// The ground of one lab.
#[derive(Debug)]
pub struct Site {
    /// Its unique name.
    pub name: String,
    /// Its cgroup, a child of the cgroup v2 mount.
    pub cgroup: PathBuf,
    /// Its files.
    pub directory: PathBuf,
}

impl Site {
    /// Removes what dead owners left, then makes a new one.
    ///
    /// # Errors
    /// Not root, no cgroup v2, or a directory cannot be made.
    pub fn new() -> Result<Self> {
        cleanup::remove_leftovers()?;
        let name = cleanup::claim_name()?;
        let site =
            Self { cgroup: cleanup::cgroup_directory(&name)?, directory: cleanup::temporary_directory(&name), name };
        for directory in [&site.cgroup, &site.directory] {
            fs::create_dir(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        }
        Ok(site)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let removed = if std::env::var_os("GUARDRAIL_LAB_KEEP").is_some() {
            eprintln!("kept: {}", self.directory.display());
            super::cgroup::remove(&self.cgroup)
        } else {
            cleanup::remove(&self.name)
        };
        if let Err(error) = removed {
            let complaint = format!("the lab {} could not be removed: {error:#}", self.name);
            assert!(thread::panicking(), "{complaint}");
            eprintln!("{complaint}");
        }
    }
}
