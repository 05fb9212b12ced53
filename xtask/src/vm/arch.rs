//! Whose machine code the guest runs: this machine's own, or a foreign one that is cross-compiled
//! and for which Debian's packages bring the libraries.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use clap::ValueEnum;

/// An architecture that guardrail is built for. The kernel programs are the same object on both
/// (BPF, little endian).
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Arch {
    /// x86-64.
    Amd64,
    /// AArch64.
    Arm64,
}

impl Arch {
    /// This machine's.
    pub(crate) const NATIVE: Self = if cfg!(target_arch = "aarch64") { Self::Arm64 } else { Self::Amd64 };

    /// Debian's name.
    pub(super) const fn debian(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// Rust's name, which is also that of Debian's cross tools up to a word.
    pub(crate) const fn target(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-gnu",
            Self::Arm64 => "aarch64-unknown-linux-gnu",
        }
    }

    /// The directory of its libraries below `/usr/lib`.
    pub(super) const fn multiarch(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-linux-gnu",
            Self::Arm64 => "aarch64-linux-gnu",
        }
    }

    /// A tool of the GNU toolchain that works on this architecture's files.
    pub(super) fn tool(self, name: &str) -> String {
        match self {
            _ if self == Self::NATIVE => name.to_owned(),
            Self::Amd64 => format!("x86_64-linux-gnu-{name}"),
            Self::Arm64 => format!("aarch64-linux-gnu-{name}"),
        }
    }

    /// Extra arguments and environment for cargo, and for rustc, to build for this architecture.
    pub(super) fn cross(self) -> Option<Cross> {
        (self != Self::NATIVE).then(|| Cross {
            target: self.target(),
            linker: self.tool("gcc"),
            linker_variable: format!("CARGO_TARGET_{}_LINKER", self.target().to_uppercase().replace('-', "_")),
        })
    }

    /// The emulator of a whole machine, with the arguments that differ. The report's serial port is
    /// [`Arch::report_port`] in the guest.
    pub(super) fn qemu(self) -> Command {
        let (program, args): (&str, &[&str]) = match self {
            // Without cmpxchg16b: emulated on several processors it stops them all, and qemu 7.2
            // now and then leaves wrong flags behind it, which crashes the guest in its allocator.
            // Kernels do without.
            Self::Amd64 => ("qemu-system-x86_64", &["-cpu", "max,-cx16"]),
            // Pointer authentication by its architected algorithm takes most of the time of an
            // emulated boot.
            Self::Arm64 => ("qemu-system-aarch64", &["-machine", "virt", "-cpu", "max,pauth-impdef=on"]),
        };
        let mut command = Command::new(program);
        command.args(args);
        command
    }

    /// The device of the kernel's messages, and that of the report.
    pub(super) const fn ports(self) -> (&'static str, &'static str) {
        match self {
            Self::Amd64 => ("ttyS0", "ttyS1"),
            // The board has one port of its own; the other sits on its PCI bus.
            Self::Arm64 => ("ttyAMA0", "ttyS0"),
        }
    }

    /// qemu's arguments for the report's port, which is connected to qemu's own input and output.
    pub(super) const fn report_port(self) -> &'static [&'static str] {
        match self {
            Self::Amd64 => &["-serial", "stdio"],
            Self::Arm64 => &["-chardev", "stdio,id=report", "-device", "pci-serial,chardev=report"],
        }
    }
}

/// How to build for a foreign architecture.
#[derive(Debug)]
pub(super) struct Cross {
    pub(super) target: &'static str,
    pub(super) linker: String,
    pub(super) linker_variable: String,
}

/// Where programs of an architecture find their libraries on this machine, and how they run here.
#[derive(Debug)]
pub(super) struct Userland {
    pub(super) arch: Arch,
    /// Unpacked Debian packages; `None`: this machine itself.
    pub(super) root: Option<PathBuf>,
}

impl Userland {
    /// A command that runs a program of this architecture on this machine.
    pub(super) fn command(&self, program: &Path) -> Command {
        match &self.root {
            None => Command::new(program),
            Some(root) => {
                let mut command = Command::new(match self.arch {
                    Arch::Amd64 => "qemu-x86_64",
                    Arch::Arm64 => "qemu-aarch64",
                });
                command.arg("-L").arg(root).arg(program);
                command
            }
        }
    }

    /// A command that prints, in `ldd`'s form, what a program or library of this architecture
    /// loads.
    pub(super) fn loader_trace(&self, program: &Path) -> Command {
        if self.root.is_none() {
            let mut command = Command::new("ldd");
            command.arg(program);
            return command;
        }
        let loader = match self.arch {
            Arch::Amd64 => "/lib64/ld-linux-x86-64.so.2",
            Arch::Arm64 => "/lib/ld-linux-aarch64.so.1",
        };
        let mut command = self.command(&self.file(Path::new(loader)));
        command.arg("--list").arg(program);
        command
    }

    /// The file that a program of this architecture sees at this absolute path.
    pub(super) fn file(&self, path: &Path) -> PathBuf {
        match &self.root {
            None => path.to_owned(),
            Some(root) => root.join(path.strip_prefix("/").unwrap_or(path)),
        }
    }

    /// The path under which the guest has a file of this userland: a loader that is run from there
    /// names itself by where it lies here.
    pub(super) fn in_guest<'a>(&self, path: &'a str) -> &'a str {
        let root = self.root.as_ref().and_then(|root| root.to_str());
        root.and_then(|root| path.strip_prefix(root)).unwrap_or(path)
    }

    /// The path of a program of the system, if it is there.
    pub(super) fn find_tool(&self, name: &str) -> Option<PathBuf> {
        ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]
            .into_iter()
            .map(|dir| Path::new(dir).join(name))
            .find(|path| self.file(path).is_file())
    }
}
