//! What the build and the tests need beyond a Rust toolchain: each piece is looked for first, named
//! when it is installed, and quick the second time.

use anyhow::{Result, bail};

use crate::{run, vm::arch::Arch};

/// The nightly that compiles the kernel programs. Its own LLVM is the one that `BPF_LINKER` links
/// against, so both move together.
pub(crate) const NIGHTLY: &str = "nightly-2026-05-20";
/// What the binary of the container image is built for.
pub(crate) const STATIC_TARGET: &str = "x86_64-unknown-linux-musl";
/// The linker of the kernel programs.
const BPF_LINKER: &str = "0.10.3";
/// A Debian package: name, what for, and the command that makes the package unnecessary if it is
/// there from elsewhere.
type Package = (&'static str, &'static str, Option<&'static str>);
/// What building, testing and the demo need.
const PACKAGES: [Package; 7] = [
    ("iproute2", "network namespaces and veths of the lab", None),
    ("iptables", "the lab's kube-proxy", None),
    ("prometheus", "the demo and a test scrape the agent with it", None),
    ("bpftool", "tests look for programs left in the kernel", None),
    ("libfaketime", "a test sets the agent's wall clock, and nobody else's", None),
    ("python3-yaml", "a YAML 1.1 reader that must read what guardrail writes", None),
    ("kubernetes-client", "kubectl kustomize must accept what guardrail writes", Some("kubectl")),
];

/// What Helm's engine needs.
const HELM_PACKAGES: [Package; 1] =
    [("python3-venv", "Helm's engine gets an environment of its own in target/helm", None)];

/// What `vm-test` needs besides; nobody else does.
const VM_PACKAGES: [Package; 2] = [
    ("binutils", "vm-test strips what it puts into the guest", Some("strip")),
    ("debian-archive-keyring", "vm-test checks the kernels that it fetches", None),
];

/// What `image` needs besides.
const IMAGE_PACKAGES: [Package; 2] = [
    ("musl-tools", "compiles the C and assembly of ring for the static binary", Some("musl-gcc")),
    ("buildah", "packs the image, without a daemon", Some("buildah")),
];

/// What building the page needs.
const UI_PACKAGES: [Package; 2] = [
    ("nodejs", "builds and tests the page", Some("node")),
    ("npm", "fetches what the page is built from, as its lock file says", Some("npm")),
];
/// What the page's tests need besides.
const BROWSER_PACKAGES: [Package; 1] = [("chromium", "opens the page in tests", None)];
/// The oldest Node.js that builds the page: what Vite asks for.
const NODE: (u32, u32) = (20, 19);

/// What `bench kernel-profile` needs besides.
const PERF_PACKAGES: [Package; 1] = [("linux-perf", "samples the kernel programs", Some("perf"))];

/// Installs what is missing, for sampling.
pub(crate) fn perf() -> Result<()> {
    packages(&PERF_PACKAGES)
}

/// What a guest with this machine code needs: the machine, and if the code is foreign, its compiler
/// and what runs a program of it here.
fn guest_packages(arch: Arch) -> &'static [Package] {
    match (arch, arch == Arch::NATIVE) {
        (Arch::Amd64, true) => {
            &[("qemu-system-x86", "vm-test boots other kernels with it", Some("qemu-system-x86_64"))]
        }
        (Arch::Arm64, true) => {
            &[("qemu-system-arm", "vm-test boots other kernels with it", Some("qemu-system-aarch64"))]
        }
        (Arch::Amd64, false) => &[
            ("qemu-system-x86", "vm-test boots other kernels with it", Some("qemu-system-x86_64")),
            ("qemu-user", "vm-test lists the tests of foreign programs with it", Some("qemu-x86_64")),
            ("gcc-x86-64-linux-gnu", "links for x86-64", None),
            ("libc6-dev-amd64-cross", "the C library to link against", None),
        ],
        (Arch::Arm64, false) => &[
            ("qemu-system-arm", "vm-test boots other kernels with it", Some("qemu-system-aarch64")),
            ("qemu-user", "vm-test lists the tests of foreign programs with it", Some("qemu-aarch64")),
            ("gcc-aarch64-linux-gnu", "links for AArch64", None),
            ("libc6-dev-arm64-cross", "the C library to link against", None),
        ],
    }
}

/// Installs what is missing.
pub(crate) fn run() -> Result<()> {
    toolchain()?;
    linker()?;
    packages(&PACKAGES)
}

/// Installs what is missing, what only tests need included.
pub(crate) fn tests() -> Result<()> {
    run()?;
    helm()
}

/// Installs what is missing to build the page.
///
/// # Errors
/// If that fails, or if this Debian's Node.js is older than what builds the page.
pub(crate) fn ui() -> Result<()> {
    packages(&UI_PACKAGES)?;
    match too_old() {
        Some(because) => bail!("{because}"),
        None => Ok(()),
    }
}

/// Why the Node.js that is there cannot build the page; `None`: it can.
fn too_old() -> Option<String> {
    let version = run::output("node", &["--version"]).unwrap_or_default();
    if node(&version).is_some_and(|version| version >= NODE) {
        return None;
    }
    let ((major, minor), version) = (NODE, version.trim());
    Some(format!(
        "the page needs Node.js {major}.{minor} or later, and `node --version` says {version:?} (Debian 12 has 18): \
         install a later one from nodejs.org and put it first on the PATH"
    ))
}

/// Major and minor of `v20.19.2`.
fn node(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.trim().strip_prefix('v')?.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Installs what is missing, the browser of the page's tests included; says why the page cannot be
/// tested with what this Debian has.
pub(crate) fn browser() -> Result<Option<String>> {
    packages(&UI_PACKAGES)?;
    let because = too_old();
    if because.is_none() {
        packages(&BROWSER_PACKAGES)?;
    }
    Ok(because)
}

/// Installs what is missing, what `vm-test` needs for this architecture included.
pub(crate) fn vm(arch: Arch) -> Result<()> {
    run()?;
    if arch != Arch::NATIVE {
        target(arch.target())?;
    }
    let wanted: Vec<Package> = VM_PACKAGES.iter().chain(guest_packages(arch)).copied().collect();
    packages(&wanted)
}

/// Rust's own libraries for another target.
fn target(target: &str) -> Result<()> {
    let installed = run::output("rustup", &["target", "list", "--installed"])
        .is_some_and(|targets| targets.lines().any(|line| line == target));
    if installed {
        return Ok(());
    }
    eprintln!("setup: installing the standard library for {target}");
    run::program("rustup", ["target", "add", target])
}

/// Installs what is missing, what `image` needs included.
pub(crate) fn image() -> Result<()> {
    run()?;
    target(STATIC_TARGET)?;
    packages(&IMAGE_PACKAGES)
}

/// Installs what is missing, Miri included.
pub(crate) fn miri() -> Result<()> {
    toolchain()?;
    let installed = run::output("rustup", &["component", "list", "--toolchain", NIGHTLY, "--installed"])
        .is_some_and(|components| components.lines().any(|c| c.starts_with("miri")));
    if installed {
        return Ok(());
    }
    eprintln!("setup: installing Miri for {NIGHTLY} (interprets tests to find undefined behaviour)");
    run::program("rustup", ["component", "add", "miri", "--toolchain", NIGHTLY])
}

fn toolchain() -> Result<()> {
    let installed = run::output("rustup", &["component", "list", "--toolchain", NIGHTLY, "--installed"])
        .is_some_and(|components| components.lines().any(|c| c == "rust-src"));
    if installed {
        return Ok(());
    }
    eprintln!("setup: installing {NIGHTLY} with rust-src (compiles the kernel programs)");
    run::program("rustup", ["toolchain", "install", NIGHTLY, "--profile", "minimal", "--component", "rust-src"])
}

fn linker() -> Result<()> {
    let version = run::output("bpf-linker", &["--version"]);
    if version.as_deref().map(str::trim) == Some(&format!("bpf-linker {BPF_LINKER}")) {
        return Ok(());
    }
    eprintln!("setup: installing bpf-linker {BPF_LINKER} (links the kernel programs; about 75 s)");
    run::program(
        "rustup",
        ["run", NIGHTLY, "cargo", "install", "--quiet", "bpf-linker", "--version", BPF_LINKER, "--locked"],
    )
}

/// Helm's engine, as the pinned Python package of `helm-requirements.txt`.
fn helm() -> Result<()> {
    packages(&HELM_PACKAGES)?;
    let environment = run::root().join("target/helm");
    let python = environment.join("bin/python3");
    let wanted = run::root().join("xtask/helm-requirements.txt");
    let [environment, python, wanted] = [&environment, &python, &wanted].map(|path| path.display().to_string());
    if run::output(&python, &["-c", "import helm_python"]).is_some() {
        return Ok(());
    }
    eprintln!("setup: installing Helm's engine in target/helm (renders the chart in tests)");
    run::program("python3", ["-m", "venv", "--clear", &environment])?;
    run::program(&python, ["-m", "pip", "install", "--quiet", "--require-hashes", "--requirement", &wanted])
}

fn packages(wanted: &[Package]) -> Result<()> {
    let missing: Vec<_> = wanted
        .iter()
        .filter(|(package, _, instead)| {
            let installed = run::output("dpkg-query", &["--show", "--showformat=${db:Status-Status}", package]);
            installed.as_deref() != Some("installed") && !instead.is_some_and(run::on_path)
        })
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    for (package, why, _) in &missing {
        eprintln!("setup: installing {package} ({why})");
    }
    let names = missing.iter().map(|(package, ..)| *package);
    if run::output("id", &["-u"]).as_deref().map(str::trim) != Some("0") {
        bail!(
            "installing Debian packages needs root: run `apt-get install {}`, then this command again",
            names.collect::<Vec<_>>().join(" ")
        );
    }
    run::program("apt-get", ["update", "--quiet=2"])?;
    run::program(
        "env",
        ["DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "--quiet=2", "--yes", "--no-install-recommends"]
            .into_iter()
            .chain(names),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_of_node_is_compared_by_number() {
        assert_eq!(node("v20.19.2\n"), Some((20, 19)));
        assert!(node("v20.9.0").is_some_and(|version| version < NODE));
        assert!(node("v22.1.0").is_some_and(|version| version >= NODE));
        assert_eq!(node("none"), None);
    }
}
