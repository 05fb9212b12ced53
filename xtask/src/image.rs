//! `cargo xtask image`: the container image, from this checkout to an archive.
//!
//! One static binary for agent and command (musl), laid into an empty image with Debian's buildah,
//! which needs neither a daemon nor a registry. Out: `target/image/guardrail.tar` (a docker
//! archive: `docker load`, `podman load`, `ctr images import`, `kind load image-archive`) and
//! `target/image/install/`, the manifests with this image's name. The same sources give the same
//! digest.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{
    run,
    setup::{self, STATIC_TARGET},
};

/// The most that the image may hold unpacked.
const MAX_BYTES: u64 = 16 << 20;

/// Options of `cargo xtask image`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Name of the image, as in `registry.example.com/guardrail:0.1.0`.
    #[arg(long, default_value = "guardrail:latest")]
    tag: Tag,
    /// Push it to the registry that the tag names (log in with `buildah login` before).
    #[arg(long)]
    push: bool,
    /// What `target/image/install` installs: a folder of deploy/overlays.
    #[arg(long, default_value = "plain")]
    overlay: String,
    /// Then run the agent from it in the lab, confined as on a cluster (needs root).
    #[arg(long)]
    check: bool,
}

/// The name of an image: what comes before the last `:`, and what after.
#[derive(Clone, Debug)]
struct Tag {
    name: String,
    version: String,
}

impl std::str::FromStr for Tag {
    type Err = String;

    fn from_str(tag: &str) -> Result<Self, String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-/:".contains(c);
        match tag.rsplit_once(':') {
            // A port has a path behind it.
            Some((name, version))
                if !name.is_empty() && !version.is_empty() && !version.contains('/') && tag.chars().all(plain) =>
            {
                Ok(Self { name: name.to_owned(), version: version.to_owned() })
            }
            _ => Err("give NAME:TAG, like registry.example.com/guardrail:0.1.0".to_owned()),
        }
    }
}

/// Builds, packs, checks, and pushes if asked.
///
/// # Errors
/// A step fails, or the image is larger than [`MAX_BYTES`].
pub(crate) fn run(options: &Options) -> Result<()> {
    let Options { tag, push, overlay, check } = options;
    if !run::root().join("deploy/overlays").join(overlay).is_dir() {
        bail!("deploy/overlays has no {overlay}");
    }
    setup::image()?;
    let dir = run::target_dir()?.join("image");
    let reference = format!("{}:{}", tag.name, tag.version);
    let storage = Storage { dir: dir.join("storage") };
    build_binary()?;
    let context = lay_out(&dir)?;
    storage.buildah([
        "bud",
        "--quiet",
        "--isolation",
        "chroot",
        // Times of files and of the image: not when, but what it was built from.
        "--timestamp",
        "0",
        "--build-arg",
        concat!("VERSION=", env!("CARGO_PKG_VERSION")),
        "--tag",
        &reference,
        "--file",
        "deploy/Containerfile",
        &context.display().to_string(),
    ])?;
    let archive = dir.join("guardrail.tar");
    remove(&archive)?;
    storage.buildah(["push", "--quiet", &reference, &format!("docker-archive:{}:{reference}", archive.display())])?;
    let unpacked = unpacked_bytes(&archive, &dir.join("unpacked"))?;
    if unpacked > MAX_BYTES {
        bail!("the image holds {unpacked} bytes unpacked, more than {MAX_BYTES}");
    }
    if *check {
        run::build_binaries()?;
        let archive = format!("GUARDRAIL_IMAGE={}", archive.display());
        let test =
            ["cargo", "test", "--quiet", "--package", "guardrail-tests", "--test", "image", "--", "--include-ignored"];
        run::program("env", [archive.as_str()].into_iter().chain(test))?;
    }
    let id = storage.output(&["images", "--quiet", "--no-trunc", &reference])?;
    let mut pinned = None;
    if *push {
        let digest = dir.join("digest");
        remove(&digest)?;
        storage.buildah(["push", "--digestfile", &digest.display().to_string(), &reference])?;
        pinned = Some(fs::read_to_string(&digest).context("buildah writes the digest of what it pushed")?);
    }
    let install = write_install(&dir, tag, pinned.as_deref(), overlay)?;
    println!("{reference}");
    println!("  id       {id}");
    if let Some(digest) = &pinned {
        println!("  digest   {digest}");
    }
    println!("  unpacked {:.1} MiB (at most {})", unpacked as f64 / f64::from(1 << 20), MAX_BYTES >> 20);
    println!("  archive  {} ({:.1} MiB)", archive.display(), fs::metadata(&archive)?.len() as f64 / f64::from(1 << 20));
    println!("  install  kubectl apply -k {}", install.display());
    Ok(())
}

fn build_binary() -> Result<()> {
    run::cargo([
        "rustc",
        "--quiet",
        "--profile",
        "image",
        "--target",
        STATIC_TARGET,
        "--package",
        "guardrail-cli",
        "--features",
        "multicall",
        "--bin",
        "guardrail-multicall",
        "--",
        // Relocations of a position-independent file as a bit map: a megabyte less. musl applies
        // them since 1.2.4.
        "-Clink-arg=-Wl,-z,pack-relative-relocs",
    ])
}

/// The image's files: the binary, and its second name as a link, which costs nothing.
fn lay_out(dir: &Path) -> Result<PathBuf> {
    let context = dir.join("context");
    if context.exists() {
        fs::remove_dir_all(&context).with_context(|| format!("cannot empty {}", context.display()))?;
    }
    let bin = context.join("usr/bin");
    fs::create_dir_all(&bin).with_context(|| format!("cannot make {}", bin.display()))?;
    let built = run::target_dir()?.join(STATIC_TARGET).join("image/guardrail-multicall");
    fs::copy(&built, bin.join("guardrail-agent")).with_context(|| format!("cannot copy {}", built.display()))?;
    std::os::unix::fs::symlink("guardrail-agent", bin.join("guardrail")).context("cannot make a link")?;
    Ok(context)
}

/// buildah's own store, apart from the user's: nothing outside the target directory is written.
struct Storage {
    dir: PathBuf,
}

impl Storage {
    fn args(&self) -> [String; 6] {
        let path = |name: &str| self.dir.join(name).display().to_string();
        // vfs needs no overlay file system, so it works inside containers too.
        let [driver, vfs, root, runroot] = ["--storage-driver", "vfs", "--root", "--runroot"].map(str::to_owned);
        [driver, vfs, root, path("root"), runroot, path("run")]
    }

    fn buildah<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Result<()> {
        run::program("buildah", self.args().into_iter().chain(args.into_iter().map(str::to_owned)))
    }

    fn output(&self, args: &[&str]) -> Result<String> {
        let own = self.args();
        let args: Vec<&str> = own.iter().map(String::as_str).chain(args.iter().copied()).collect();
        let output = run::output("buildah", &args).with_context(|| format!("`buildah {}` failed", args.join(" ")))?;
        Ok(output.trim().to_owned())
    }
}

/// Unpacks the archive's layers, as a container runtime does, and sums what they hold.
fn unpacked_bytes(archive: &Path, into: &Path) -> Result<u64> {
    if into.exists() {
        fs::remove_dir_all(into).with_context(|| format!("cannot empty {}", into.display()))?;
    }
    let (layers, root) = (into.join("layers"), into.join("root"));
    fs::create_dir_all(&layers).and_then(|()| fs::create_dir_all(&root)).context("cannot make directories")?;
    let untar = |tar: &Path, into: &Path| {
        run::program("tar", [Path::new("--extract"), Path::new("--file"), tar, Path::new("--directory"), into])
    };
    untar(archive, &layers)?;
    let manifest = fs::read(layers.join("manifest.json")).context("the archive has no manifest")?;
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).context("the archive's manifest is no JSON")?;
    for layer in manifest[0]["Layers"].as_array().context("the manifest lists no layers")? {
        untar(&layers.join(layer.as_str().context("a layer is a file's name")?), &root)?;
    }
    bytes_below(&root)
}

fn bytes_below(dir: &Path) -> Result<u64> {
    let mut sum = 0;
    let mut pending = vec![dir.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))? {
            let (kind, entry) = entry.and_then(|e| Ok((e.file_type()?, e)))?;
            match kind.is_dir() {
                true => pending.push(entry.path()),
                false => sum += entry.metadata()?.size(),
            }
        }
    }
    Ok(sum)
}

/// Manifests that name this image: by digest once it is in a registry, else by tag.
fn write_install(dir: &Path, tag: &Tag, digest: Option<&str>, overlay: &str) -> Result<PathBuf> {
    let install = dir.join("install");
    fs::create_dir_all(&install).with_context(|| format!("cannot make {}", install.display()))?;
    let which = match digest {
        Some(digest) => format!("digest: {digest}"),
        None => format!("newTag: \"{}\"", tag.version),
    };
    // kustomize takes resources by relative path only.
    let deploy = relative(&run::root().join("deploy/overlays").join(overlay), &install)?;
    fs::write(
        install.join("kustomization.yaml"),
        format!(
            "# Written by `cargo xtask image`.\napiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n  - {}\nimages:\n  - name: guardrail\n    newName: {}\n    {which}\n",
            deploy.display(),
            tag.name,
        ),
    )?;
    Ok(install)
}

/// `to` as seen from the directory `from`.
fn relative(to: &Path, from: &Path) -> Result<PathBuf> {
    let (to, from) = (to.canonicalize()?, from.canonicalize()?);
    let common = to.components().zip(from.components()).take_while(|(a, b)| a == b).count();
    let up = from.components().skip(common).map(|_| std::path::Component::ParentDir);
    Ok(up.chain(to.components().skip(common)).collect())
}

fn remove(file: &Path) -> Result<()> {
    match fs::remove_file(file) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", file.display()))
        }
        _ => Ok(()),
    }
}
