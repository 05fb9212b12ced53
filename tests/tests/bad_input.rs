//! Bad input: one clear sentence (what, where, what to do), exit code 2, nothing half-written.

use std::{
    ffi::OsString,
    fs,
    net::TcpListener,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use guardrail_tests::{bins, lab::process};

/// A directory of its own that is removed in the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("guardrail-bad-input-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        // Other users must reach what is tested as them.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.0.join(name);
        fs::write(&path, content).unwrap();
        path.display().to_string()
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const NODE: &str = "apiVersion: v1\nkind: Node\nmetadata: {name: node-a}\n";

/// Runs the agent through `wrap`, which may change how, and checks how it refuses; `hints` must all
/// be in its sentence.
fn refuses(scratch: &Scratch, args: &[&str], hints: &[&str], wrap: impl FnOnce(Command) -> Command) {
    let (export, state) = (scratch.path("export"), scratch.path("state"));
    let mut all: Vec<OsString> = vec!["--listen".into(), "127.0.0.1:0".into(), "--node".into(), "node-a".into()];
    for (option, directory) in [("--export-dir", &export), ("--state-dir", &state)] {
        if !args.contains(&option) {
            all.extend([option.into(), directory.into()]);
        }
    }
    // A later --listen replaces the first one only if the first is not there.
    if args.contains(&"--listen") {
        all.drain(..2);
    }
    all.extend(args.iter().map(Into::into));
    let mut command = Command::new(bins::find("guardrail-agent"));
    command.args(&all);
    let mut command = wrap(command);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let ended = process::wait(&mut child, Duration::from_secs(20));
    if ended.is_err() {
        child.kill().unwrap();
    }
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{args:?} should be refused:\n{said}");
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines.len(), 1, "one sentence, not:\n{said}");
    assert!(output.stdout.is_empty(), "nothing on standard output");
    for hint in hints {
        assert!(said.contains(hint), "{args:?}: '{hint}' is missing in: {said}");
    }
    for directory in [export, state] {
        let left: Vec<_> = fs::read_dir(&directory).into_iter().flatten().flatten().map(|e| e.path()).collect();
        assert!(left.is_empty(), "{args:?} left {left:?}");
    }
}

fn plain(command: Command) -> Command {
    command
}

#[test]
fn an_inventory_that_cannot_be_used_is_refused_with_file_and_line() {
    if !bins::can_run("bad inventories") {
        return;
    }
    let scratch = Scratch::new("inventory");
    let missing = scratch.path("no-such-file.yaml");
    refuses(&scratch, &["--inventory", &missing], &[&missing], plain);
    let directory = scratch.path("");
    refuses(&scratch, &["--inventory", &directory], &[&directory], plain);
    for (name, content, hints) in [
        ("empty.yaml", &b""[..], &["empty"][..]),
        ("blank.yaml", b"---\n# nothing\n---\n", &[]),
        (
            "malformed.yaml",
            b"apiVersion: v1\nkind: Node\nmetadata: {name: node-a}\n---\nkind: Pod\nmetadata: [unclosed\n",
            &["line"],
        ),
        ("tabs.yaml", b"apiVersion: v1\nkind: Node\nmetadata:\n\tname: a\n", &["line"]),
        ("binary.yaml", b"\x7fELF\x02\x01\x01\x00\xff\xfe", &[]),
        ("scalar.yaml", b"hello\n", &[]),
    ] {
        let file = scratch.file(name, content);
        let mut all = vec![file.as_str()];
        all.extend(hints);
        refuses(&scratch, &["--inventory", &file], &all, plain);
    }
    refuses(&scratch, &["--inventory", "kube"], &["KUBECONFIG"], |mut command| {
        let home = command.get_program().to_owned();
        command.env_remove("KUBECONFIG").env_remove("KUBERNETES_SERVICE_HOST").env("HOME", home);
        command
    });
}

#[test]
fn an_address_in_use_is_refused_with_the_address() {
    if !bins::can_run("an address in use") {
        return;
    }
    let scratch = Scratch::new("listen");
    let inventory = scratch.file("inventory.yaml", NODE);
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = holder.local_addr().unwrap().to_string();
    refuses(&scratch, &["--inventory", &inventory, "--listen", &address], &[&address, "--listen"], plain);
}

#[test]
fn a_directory_that_cannot_be_written_is_refused_with_the_option() {
    if !bins::can_run("directories that cannot be written") {
        return;
    }
    let scratch = Scratch::new("directories");
    let inventory = scratch.file("inventory.yaml", NODE);
    let file = scratch.file("a-file", "");
    for option in ["--export-dir", "--state-dir"] {
        refuses(&scratch, &["--inventory", &inventory, option, &file], &[option, &file], plain);
        // /proc takes no new files, not even from root.
        refuses(&scratch, &["--inventory", &inventory, option, "/proc/self"], &[option, "/proc/self"], plain);
    }
}

#[test]
fn whoever_may_not_load_programs_is_told_which_capability_is_missing() {
    if !bins::can_run("missing capabilities") {
        return;
    }
    let scratch = Scratch::new("capabilities");
    let inventory = scratch.file("inventory.yaml", NODE);
    let copy = scratch.0.join("guardrail-agent");
    fs::copy(bins::find("guardrail-agent"), &copy).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    for name in ["export", "state"] {
        fs::create_dir(scratch.path(name)).unwrap();
        fs::set_permissions(scratch.path(name), fs::Permissions::from_mode(0o777)).unwrap();
    }
    refuses(&scratch, &["--inventory", &inventory], &["root"], |command| {
        let mut other = Command::new(&copy);
        other.args(command.get_args()).uid(65534).gid(65534);
        other
    });
    // CAP_SYS_ADMIN (21) stands in for CAP_BPF (39) and CAP_PERFMON (38): all must go for one to be
    // missing.
    for (gone, name) in [(&[21, 39][..], "CAP_BPF"), (&[21, 38], "CAP_PERFMON"), (&[12], "CAP_NET_ADMIN")] {
        refuses(&scratch, &["--inventory", &inventory], &[name], |mut command| {
            let gone = gone.to_vec();
            let drop = move || {
                for capability in &gone {
                    // SAFETY: plain system call; after exec, root has what the bounding set leaves.
                    if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, *capability as libc::c_ulong) } != 0 {
                        return Err(std::io::Error::last_os_error());
                    }
                }
                Ok(())
            };
            // SAFETY: prctl is async-signal-safe and nothing is allocated.
            unsafe { command.pre_exec(drop) };
            command
        });
    }
}

/// The same command in a mount namespace of its own, after `prepare` (a shell line) changed what is
/// mounted there.
fn behind(prepare: String) -> impl FnOnce(Command) -> Command {
    move |command| {
        let mut other = Command::new("unshare");
        other.args(["--mount", "--propagation", "private", "sh", "-c"]);
        other.arg(format!("{prepare} && exec \"$@\"")).arg("sh").arg(command.get_program()).args(command.get_args());
        other
    }
}

#[test]
fn a_kernel_without_btf_or_cgroup_v2_or_a_member_is_refused_by_name() {
    if !bins::can_run("kernels that lack something") {
        return;
    }
    let scratch = Scratch::new("kernel");
    let inventory = scratch.file("inventory.yaml", NODE);
    let empty = scratch.path("empty");
    fs::create_dir(&empty).unwrap();
    let args = ["--inventory", inventory.as_str()];
    refuses(
        &scratch,
        &args,
        &["/sys/kernel/btf/vmlinux", "CONFIG_DEBUG_INFO_BTF"],
        behind(format!("mount --bind {empty} /sys/kernel/btf")),
    );
    let cgroup = guardrail_tests::lab::cgroup::mount().unwrap();
    refuses(&scratch, &args, &["cgroup v2", "--cgroup-root"], behind(format!("umount -l {}", cgroup.display())));
    refuses(&scratch, &[&args[..], &["--cgroup-root", &empty]].concat(), &[&empty, "--cgroup-root"], plain);
    refuses(&scratch, &[&args[..], &["--cgroup-root", "/no/such/directory"]].concat(), &["/no/such/directory"], plain);
    // The same type information, but one member has another name.
    let mut btf = fs::read("/sys/kernel/btf/vmlinux").unwrap();
    for member in ["sk_cgrp_data", "skc_daddr"] {
        let name = format!("\0{member}\0");
        let at = btf.windows(name.len()).position(|w| w == name.as_bytes()).expect("the running kernel has it");
        btf[at + name.len() - 2] = b'X';
        let file = scratch.file(&format!("vmlinux-without-{member}"), &btf);
        refuses(&scratch, &args, &[member], behind(format!("mount --bind {file} /sys/kernel/btf/vmlinux")));
        btf[at + name.len() - 2] = member.as_bytes()[member.len() - 1];
    }
}

#[test]
fn options_out_of_range_are_refused_before_anything_is_touched() {
    if !bins::can_run("bad options") {
        return;
    }
    let scratch = Scratch::new("options");
    let inventory = scratch.file("inventory.yaml", NODE);
    for (option, value) in [
        ("--ring-bytes", "5000"),
        ("--flow-entries", "1"),
        ("--udp", "maybe"),
        ("--duration", "0"),
        ("--listen", "here"),
    ] {
        let output = Command::new(bins::find("guardrail-agent"))
            .args(["--inventory", &inventory, "--export-dir", &scratch.path("export"), option, value])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{option} {value}: {said}");
        assert!(said.contains(option) && said.contains(value), "{said}");
        assert!(!Path::new(&scratch.path("export")).exists());
    }
}
