//! The command as a user runs it.
#![allow(dead_code, clippy::allow_attributes, reason = "each test file uses its part")]

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Runs the command in a directory: exit code, stdout, stderr.
pub(crate) fn run(directory: &Path, args: &[&str], stdin: &str) -> (i32, String, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_guardrail"))
        .args(args)
        .current_dir(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that does not read its stdin may close it first.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// Where the shop's files are. Run there, messages name files without the machine's paths.
pub(crate) fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")
}

/// Runs the command in [`data`].
pub(crate) fn guardrail(args: &[&str]) -> (i32, String, String) {
    run(&data(), args, "")
}

/// Writes a file; gives its path.
pub(crate) fn file(directory: &tempfile::TempDir, name: &str, content: impl AsRef<[u8]>) -> String {
    let path = directory.path().join(name);
    fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}

/// A directory for the files of a test.
pub(crate) struct Scratch {
    pub(crate) directory: tempfile::TempDir,
}

impl Scratch {
    pub(crate) fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// Exports a snapshot of the shop to `out`, by this plan for production.
    pub(crate) fn export_of(&self, snapshot: &str, plan: &str, more: &[&str]) -> (i32, String) {
        fs::write(self.path("guardrail.yaml"), plan).unwrap();
        let (plan, out) = (self.text("guardrail.yaml"), self.text("out"));
        let args =
            ["export", snapshot, "--plan", &plan, "--environment", "production", "--accept-inferred", "-d", &out];
        let (code, stdout, stderr) = guardrail(&[&args[..], more].concat());
        assert_eq!(stdout, "");
        (code, stderr)
    }
}
