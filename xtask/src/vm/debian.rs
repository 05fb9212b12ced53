//! Debian packages of other releases, without touching this machine's own package lists: apt with a
//! source list, state and cache of its own.
//!
//! The mirror is the one that this machine's apt uses for Debian; signatures are checked with
//! Debian's archive keys. What was fetched once is used again: delete `target/vm` for newer
//! kernels.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use super::arch::{Arch, Userland};
use crate::run;

/// Debian's own name for "a mirror near you", for machines whose apt has no Debian source.
const DEFAULT_MIRROR: &str = "http://deb.debian.org/debian";
/// From the package debian-archive-keyring; holds the keys of every supported release.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// An unpacked kernel package.
#[derive(Debug)]
pub(super) struct Kernel {
    /// The bootable image.
    pub(super) image: PathBuf,
    /// Network modules and what they may depend on (`.ko` files, uncompressed), by module name.
    pub(super) modules: BTreeMap<String, PathBuf>,
}

/// The kernel image for cloud machines of a Debian release, unpacked in this directory. `busybox`
/// runs here.
pub(super) fn kernel(dir: &Path, release: &str, arch: Arch, busybox: &Path) -> Result<Kernel> {
    let unpacked = dir.join("kernel");
    if !unpacked.is_dir() {
        let apt = Apt::new(dir, release, arch)?;
        let package = apt.dependency_of(&format!("linux-image-cloud-{}", arch.debian()), "linux-image-")?;
        let deb = apt.download(&package)?;
        unpack(&deb, &unpacked, &["./boot/vmlinuz-*", "*/kernel/net/*", "*/kernel/drivers/net/*", "*/kernel/lib/*"])?;
    }
    let boot = unpacked.join("boot");
    let image = fs::read_dir(&boot)
        .with_context(|| format!("cannot read {}", boot.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-")))
        .ok_or_else(|| anyhow!("no kernel image in {}: delete {} and try again", boot.display(), dir.display()))?;
    let mut modules = BTreeMap::new();
    collect_modules(&unpacked, busybox, &mut modules)?;
    Ok(Kernel { image, modules })
}

/// A statically linked busybox: it runs on all of the kernels.
pub(super) fn busybox(cache: &Path, arch: Arch) -> Result<PathBuf> {
    let dir = cache.join(format!("busybox-{}", arch.debian()));
    let unpacked = dir.join("unpacked");
    if !unpacked.is_dir() {
        let deb = Apt::new(&dir, "bookworm", arch)?.download("busybox-static")?;
        unpack(&deb, &unpacked, &["*/busybox"])?;
    }
    ["bin/busybox", "usr/bin/busybox"]
        .map(|path| unpacked.join(path))
        .into_iter()
        .find(|path| path.is_file())
        .ok_or_else(|| anyhow!("busybox-static has no busybox: delete {} and try again", dir.display()))
}

/// Libraries and tools for programs of an architecture: this machine's own, or those that Debian's
/// packages bring. The newest release, because programs that were linked against an older C library
/// run with it, and not the other way round.
pub(super) fn userland(cache: &Path, arch: Arch, tools: &[&str]) -> Result<Userland> {
    if arch == Arch::NATIVE {
        return Ok(Userland { arch, root: None });
    }
    let dir = cache.join(format!("userland-{}", arch.debian()));
    let root = dir.join("unpacked");
    if !root.is_dir() {
        let debs = Apt::new(&dir, "trixie", arch)?.download_with_dependencies(tools)?;
        // Packages say /usr/lib or /lib and mean the same.
        let part = root.with_extension("part");
        for directory in ["lib", "bin", "sbin"] {
            let (real, link) = (part.join("usr").join(directory), part.join(directory));
            fs::create_dir_all(&real).with_context(|| format!("cannot create {}", real.display()))?;
            if !link.is_symlink() {
                symlink(Path::new("usr").join(directory), &link)
                    .with_context(|| format!("cannot create {}", link.display()))?;
            }
        }
        for deb in &debs {
            extract(deb, &part, &[])?;
        }
        fs::rename(&part, &root).with_context(|| format!("cannot rename {}", part.display()))?;
    }
    Ok(Userland { arch, root: Some(root) })
}

/// The wanted modules and everything they depend on, each after what it depends on. A wanted name
/// that is no module is taken to be built in.
pub(super) fn modules_in_load_order(modules: &BTreeMap<String, PathBuf>, wanted: &[&str]) -> Result<Vec<PathBuf>> {
    let mut order = Vec::new();
    for name in wanted.iter().filter(|name| modules.contains_key(**name)) {
        add_module(modules, name, &mut order)?;
    }
    Ok(order)
}

fn add_module(modules: &BTreeMap<String, PathBuf>, name: &str, order: &mut Vec<PathBuf>) -> Result<()> {
    let Some(path) = modules.get(&name.replace('-', "_")) else {
        bail!("the kernel package has no module {name} where it was looked for");
    };
    if order.contains(path) {
        return Ok(());
    }
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    for dependency in depends(&bytes) {
        add_module(modules, &dependency, order)?;
    }
    order.push(path.clone());
    Ok(())
}

/// The names after `depends=` in a module's `.modinfo` section: NUL-terminated `key=value` strings.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"depends=";
    module
        .split(|&byte| byte == 0)
        .find_map(|string| string.strip_prefix(KEY))
        .map(String::from_utf8_lossy)
        .unwrap_or_default()
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Finds `.ko` files, unpacking `.ko.xz` in place.
fn collect_modules(dir: &Path, busybox: &Path, modules: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let mut path = entry?.path();
        if path.is_dir() {
            collect_modules(&path, busybox, modules)?;
            continue;
        }
        if path.to_string_lossy().ends_with(".ko.xz") {
            let status = Command::new(busybox).arg("unxz").arg(&path).status().context("cannot run busybox")?;
            ensure!(status.success(), "cannot uncompress {}", path.display());
            path.set_extension("");
        }
        if path.extension().is_some_and(|extension| extension == "ko") {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().replace('-', "_");
            modules.insert(name, path);
        }
    }
    Ok(())
}

/// Unpacks what matches into `to`, whole or not at all.
fn unpack(deb: &Path, to: &Path, patterns: &[&str]) -> Result<()> {
    let part = to.with_extension("part");
    if part.exists() {
        fs::remove_dir_all(&part).with_context(|| format!("cannot remove {}", part.display()))?;
    }
    fs::create_dir_all(&part).with_context(|| format!("cannot create {}", part.display()))?;
    extract(deb, &part, patterns)?;
    fs::rename(&part, to).with_context(|| format!("cannot rename {}", part.display()))
}

/// Extracts what matches (without patterns: everything) into `to`.
fn extract(deb: &Path, to: &Path, patterns: &[&str]) -> Result<()> {
    let mut data = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(deb)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run dpkg-deb")?;
    let tar = Command::new("tar")
        .args(["--extract", "--no-same-owner", "--keep-directory-symlink", "--wildcards", "--directory"])
        .arg(to)
        .args(patterns)
        .stdin(data.stdout.take().context("dpkg-deb has no output")?)
        .status()
        .context("cannot run tar")?;
    let data = data.wait().context("cannot wait for dpkg-deb")?;
    ensure!(tar.success() && data.success(), "cannot unpack {}: delete it and try again", deb.display());
    Ok(())
}

/// apt for one Debian release, with everything it writes in one directory.
struct Apt {
    dir: PathBuf,
    options: Vec<String>,
}

impl Apt {
    fn new(dir: &Path, release: &str, arch: Arch) -> Result<Self> {
        ensure!(
            Path::new(KEYRING).is_file(),
            "{KEYRING} is missing: install debian-archive-keyring (vm-test fetches its kernels as signed Debian packages)"
        );
        let apt = dir.join("apt");
        for sub in ["state/lists/partial", "cache/archives/partial"] {
            let path = apt.join(sub);
            fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        }
        let write = |name: &str, text: String| {
            let path = apt.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
        };
        write("status", String::new())?;
        write(
            "sources.list",
            format!("deb [arch={} signed-by={KEYRING}] {} {release} main\n", arch.debian(), mirror()),
        )?;
        let path = |name: &str| apt.join(name).display().to_string();
        let options = [
            format!("Dir::Etc::SourceList={}", path("sources.list")),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            format!("Dir::State={}", path("state")),
            format!("Dir::State::status={}", path("status")),
            format!("Dir::Cache={}", path("cache")),
            format!("APT::Architecture={}", arch.debian()),
            format!("APT::Architectures={}", arch.debian()),
            "APT::Sandbox::User=root".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::Retries=3".to_owned(),
        ];
        let this = Self {
            dir: dir.to_owned(),
            options: options.into_iter().flat_map(|option| ["-o".to_owned(), option]).collect(),
        };
        eprintln!("vm-test: reading the package lists of Debian {release}");
        this.run("apt-get", &["--quiet=2", "update"])
            .with_context(|| format!("cannot read the package lists of Debian {release} at {}", mirror()))?;
        Ok(this)
    }

    /// The first dependency of `package` whose name starts with `prefix`.
    fn dependency_of(&self, package: &str, prefix: &str) -> Result<String> {
        let shown = self.run("apt-cache", &["show", "--no-all-versions", package])?;
        shown
            .lines()
            .filter_map(|line| line.strip_prefix("Depends: "))
            .flat_map(|depends| depends.split(", "))
            .filter_map(|dependency| dependency.split_whitespace().next())
            .find(|name| name.starts_with(prefix))
            .map(str::to_owned)
            .ok_or_else(|| anyhow!("{package} depends on no {prefix}*"))
    }

    /// Fetches the newest version of a package; gives the file.
    fn download(&self, package: &str) -> Result<PathBuf> {
        eprintln!("vm-test: fetching {package}");
        self.run("apt-get", &["--quiet=2", "download", package])?;
        let prefix = format!("{package}_");
        fs::read_dir(&self.dir)
            .with_context(|| format!("cannot read {}", self.dir.display()))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| {
                path.extension().is_some_and(|extension| extension == "deb")
                    && path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix))
            })
            .ok_or_else(|| anyhow!("apt-get download {package} left no file in {}", self.dir.display()))
    }

    /// Fetches packages and all that they depend on, as if nothing were installed; gives the files.
    fn download_with_dependencies(&self, packages: &[&str]) -> Result<Vec<PathBuf>> {
        eprintln!("vm-test: fetching {} and what these depend on", packages.join(", "));
        let mut args =
            vec!["--quiet=2", "--yes", "--no-install-recommends", "--download-only", "-oDebug::NoLocking=1", "install"];
        args.extend(packages);
        self.run("apt-get", &args)?;
        let archives = self.dir.join("apt/cache/archives");
        let mut debs: Vec<PathBuf> = fs::read_dir(&archives)
            .with_context(|| format!("cannot read {}", archives.display()))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .collect();
        debs.sort();
        Ok(debs)
    }

    fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        let output = Command::new(program)
            .args(&self.options)
            .args(args)
            .current_dir(&self.dir)
            .output()
            .with_context(|| format!("cannot run {program}"))?;
        ensure!(
            output.status.success(),
            "{program} {} failed: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// Where this machine's apt gets Debian itself from.
fn mirror() -> String {
    run::output("apt-get", &["indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)", "Created-By: Packages"])
        .and_then(|targets| {
            let line = targets.lines().find_map(|line| line.strip_prefix("Debian|Debian|"))?;
            Some(line.trim_end_matches('/').to_owned())
        })
        .unwrap_or_else(|| DEFAULT_MIRROR.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_modinfo() {
        assert_eq!(depends(b"\x7fELF\0license=GPL\0depends=stp,llc\0name=bridge\0"), ["stp", "llc"]);
        assert!(depends(b"license=GPL\0depends=\0name=veth\0").is_empty());
    }

    #[test]
    fn a_module_comes_after_what_it_depends_on() {
        let dir = tempfile::tempdir().unwrap();
        let mut modules = BTreeMap::new();
        for (name, depends) in [("bridge", "stp,llc"), ("stp", "llc"), ("llc", "")] {
            let path = dir.path().join(name);
            fs::write(&path, format!("\0depends={depends}\0")).unwrap();
            modules.insert(name.to_owned(), path);
        }
        let order = modules_in_load_order(&modules, &["bridge", "built-in"]).unwrap();
        let names: Vec<_> = order.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["llc", "stp", "bridge"]);
    }
}
