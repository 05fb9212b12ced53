//! The guest's whole file system: an uncompressed cpio archive ("newc", the format the kernel
//! unpacks at boot), written here so that no tool and no root is needed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, anyhow, ensure};

use super::{arch::Userland, suite::Suite};

/// The guest's first process.
const INIT: &str = include_str!("guest.sh");
/// Tools of this machine that the tests call and busybox has in a lesser form or not at all.
const TOOLS: [&str; 6] =
    ["ip", "bpftool", "iptables-legacy", "iptables-legacy-save", "iptables-legacy-restore", "ip6tables-legacy-restore"];
/// What iptables loads while it runs, in this directory of the libraries: targets and matches of
/// the tests' rules.
const XTABLES: (&str, [&str; 3]) = ("xtables", ["libxt_standard.so", "libxt_tcp.so", "libxt_REDIRECT.so"]);

/// Writes the archive: init, busybox, modules numbered in load order, the tests and their programs
/// and libraries, and the plan.
pub(super) fn write(
    image: &Path,
    userland: &Userland,
    busybox: &Path,
    modules: &[PathBuf],
    suite: &Suite,
    shim: &Path,
) -> Result<()> {
    let mut tree = Tree { files: BTreeMap::new(), userland };
    tree.add("/init", 0o755, INIT.into());
    tree.add_file("/busybox", busybox)?;
    tree.add_file("/verifier_shim.so", shim)?;
    for (index, module) in modules.iter().enumerate() {
        let name = module.file_name().unwrap_or_default().to_string_lossy();
        tree.add_file(&format!("/modules/{index:02}-{name}"), module)?;
    }
    let mut tools = String::new();
    for tool in TOOLS {
        if let Some(path) = userland.find_tool(tool) {
            tree.add_program(&path, &userland.file(&path))?;
            tools += &format!("{}\n", path.display());
        }
    }
    tree.add("/tools", 0o644, tools.into_bytes());
    for name in XTABLES.1 {
        let path = Path::new("/usr/lib").join(userland.arch.multiarch()).join(XTABLES.0).join(name);
        let file = userland.file(&path);
        if file.is_file() {
            tree.add_program(&path, &file)?;
        }
    }
    for program in suite.tests.iter().map(|test| &test.binary).chain(&suite.programs).collect::<BTreeSet<_>>() {
        tree.add_program(program, program)?;
    }
    tree.add_libraries(shim)?;
    let plan: String = suite
        .tests
        .iter()
        .enumerate()
        .map(|(number, test)| {
            format!("{number} {} {} {}\n", super::machine::TEST_LIMIT.as_secs(), test.binary.display(), test.name)
        })
        .collect();
    tree.add("/plan", 0o644, plan.into_bytes());
    tree.write(BufWriter::new(File::create(image)?))?;
    Ok(())
}

/// The guest's files, and where those of the system come from.
struct Tree<'a> {
    /// By absolute path: mode and content.
    files: BTreeMap<String, (u32, Vec<u8>)>,
    userland: &'a Userland,
}

impl Tree<'_> {
    fn add(&mut self, path: &str, mode: u32, content: Vec<u8>) {
        self.files.insert(path.to_owned(), (mode, content));
    }

    fn add_file(&mut self, to: &str, from: &Path) -> Result<()> {
        let content = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        self.add(to, 0o755, content);
        Ok(())
    }

    /// A program at its path, without its debug sections (they would be most of the guest's
    /// memory), and its libraries.
    fn add_program(&mut self, path: &Path, from: &Path) -> Result<()> {
        let stripped = tempfile::NamedTempFile::new().context("cannot make a temporary file")?;
        let strip = self.userland.arch.tool("strip");
        let status = Command::new(&strip)
            .args(["--strip-debug", "-o"])
            .arg(stripped.path())
            .arg(from)
            .status()
            .with_context(|| format!("cannot run {strip} (package binutils)"))?;
        ensure!(status.success(), "{strip} failed on {}", from.display());
        self.add_file(text(path)?, stripped.path())?;
        self.add_libraries(from)
    }

    /// What the dynamic loader would load, itself included, at the paths where it looks.
    fn add_libraries(&mut self, program: &Path) -> Result<()> {
        let output = self
            .userland
            .loader_trace(program)
            .output()
            .with_context(|| format!("cannot list the libraries of {}", program.display()))?;
        for library in libraries(&String::from_utf8_lossy(&output.stdout)).map(|path| self.userland.in_guest(path)) {
            if !self.files.contains_key(library) {
                self.add_file(library, &self.userland.file(Path::new(library)))?;
            }
        }
        Ok(())
    }

    fn write(&self, mut out: impl Write) -> io::Result<()> {
        const DIRECTORY: u32 = 0o040_000;
        const REGULAR: u32 = 0o100_000;
        const CHARACTER_DEVICE: u32 = 0o020_000;
        let mut directories = BTreeSet::from(["dev".to_owned()]);
        for path in self.files.keys() {
            let mut parent = Path::new(path.trim_start_matches('/')).parent();
            while let Some(dir) = parent.filter(|dir| !dir.as_os_str().is_empty()) {
                directories.insert(dir.to_string_lossy().into_owned());
                parent = dir.parent();
            }
        }
        let mut inode = 0;
        let mut next = || {
            inode += 1;
            inode
        };
        // Sorted, so a directory comes before what is in it.
        for directory in &directories {
            entry(&mut out, next(), directory, DIRECTORY | 0o755, (0, 0), &[])?;
        }
        // The kernel opens it for init before devtmpfs is there.
        entry(&mut out, next(), "dev/console", CHARACTER_DEVICE | 0o600, (5, 1), &[])?;
        for (path, (mode, content)) in &self.files {
            entry(&mut out, next(), path.trim_start_matches('/'), REGULAR | mode, (0, 0), content)?;
        }
        entry(&mut out, 0, "TRAILER!!!", 0, (0, 0), &[])?;
        out.flush()
    }
}

/// One cpio entry: a header of 8-digit hexadecimal fields, the NUL-terminated name, the content;
/// name and content padded to 4 bytes. Layout: the kernel's
/// `Documentation/driver-api/early-userspace/buffer-format.rst`.
fn entry(
    out: &mut impl Write,
    inode: u32,
    name: &str,
    mode: u32,
    device: (u32, u32),
    content: &[u8],
) -> io::Result<()> {
    let size = u32::try_from(content.len()).map_err(|_| io::Error::other(format!("{name} is over 4 GiB")))?;
    let name_size = name.len() as u32 + 1;
    write!(out, "070701")?;
    for field in [inode, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name_size, 0] {
        write!(out, "{field:08x}")?;
    }
    out.write_all(name.as_bytes())?;
    out.write_all(&[0; 4][..1 + padding(110 + name_size as usize)])?;
    out.write_all(content)?;
    out.write_all(&[0; 4][..padding(content.len())])
}

/// Bytes up to the next multiple of four.
fn padding(length: usize) -> usize {
    length.next_multiple_of(4) - length
}

/// Paths in `ldd`'s output: after `=>`, or alone (the loader); the vDSO has none. A foreign loader
/// names itself by two paths, of which the first is the guest's.
fn libraries(ldd: &str) -> impl Iterator<Item = &str> {
    ldd.lines().filter_map(|line| {
        let found = match line.split_once("=>") {
            Some((name, path)) if !name.trim().starts_with('/') => path,
            Some((name, _)) => name,
            None => line,
        };
        found.split_whitespace().next().filter(|path| path.starts_with('/'))
    })
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| anyhow!("{} is not valid UTF-8", path.display()))
}

#[cfg(test)]
mod tests {
    use super::{super::arch::Arch, *};

    #[test]
    fn libraries_are_what_ldd_found() {
        let ldd = "\tlinux-vdso.so.1 (0x00007ffe)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        assert_eq!(
            libraries(ldd).collect::<Vec<_>>(),
            ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]
        );
        assert_eq!(libraries("\tnot a dynamic executable\n").count(), 0);
        let foreign = "\t/lib/ld-linux-aarch64.so.1 => /here/unpacked/lib/ld-linux-aarch64.so.1 (0x00000055)\n";
        assert_eq!(libraries(foreign).collect::<Vec<_>>(), ["/lib/ld-linux-aarch64.so.1"]);
    }

    #[test]
    fn entries_are_padded_and_parents_come_first() {
        let userland = Userland { arch: Arch::NATIVE, root: None };
        let mut tree = Tree { files: BTreeMap::new(), userland: &userland };
        tree.add("/a/b/c", 0o644, b"12345".to_vec());
        let mut bytes = Vec::new();
        tree.write(&mut bytes).unwrap();
        let mut names = Vec::new();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            assert_eq!(&rest[..6], b"070701");
            let field = |index: usize| {
                let at = 6 + 8 * index;
                usize::from_str_radix(std::str::from_utf8(&rest[at..at + 8]).unwrap(), 16).unwrap()
            };
            let (size, name_size) = (field(6), field(11));
            names.push(String::from_utf8(rest[110..110 + name_size - 1].to_vec()).unwrap());
            rest = &rest[(110 + name_size).next_multiple_of(4) + size.next_multiple_of(4)..];
        }
        assert_eq!(names, ["a", "a/b", "dev", "dev/console", "a/b/c", "TRAILER!!!"]);
    }
}
