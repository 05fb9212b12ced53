//! Builds the kernel programs into `OUT_DIR/guardrail`, with the eBPF toolchain that `cargo xtask
//! setup` installs.
//!
//! `AYA_BUILD_SKIP=1` leaves them out (for check and clippy); an agent built so refuses to start.

use std::{
    env,
    path::PathBuf,
    process::{Command, ExitCode},
};

/// The compiler of the programs, pinned by date: bpf-linker 0.10.3 links against this nightly's own
/// LLVM.
const TOOLCHAIN: &str = "nightly-2026-05-20";

fn main() -> ExitCode {
    println!("cargo:rustc-check-cfg=cfg(guardrail_no_programs)");
    println!("cargo:rerun-if-env-changed=AYA_BUILD_SKIP");
    println!("cargo:rerun-if-changed=build.rs");
    if env::var("AYA_BUILD_SKIP").is_ok_and(|skip| skip == "1" || skip.eq_ignore_ascii_case("true")) {
        println!("cargo:rustc-cfg=guardrail_no_programs");
        return ExitCode::SUCCESS;
    }
    for input in [
        "../guardrail-ebpf/src",
        "../guardrail-ebpf/Cargo.toml",
        "../guardrail-common/src",
        "../guardrail-common/Cargo.toml",
    ] {
        println!("cargo:rerun-if-changed={input}");
    }
    if let Err(missing) = tools() {
        eprintln!(
            "the eBPF programs cannot be built because {missing}: run `cargo xtask setup` once, or set AYA_BUILD_SKIP=1 to check without them"
        );
        return ExitCode::FAILURE;
    }
    let package =
        aya_build::Package { name: "guardrail-ebpf", root_dir: "../guardrail-ebpf/src", ..Default::default() };
    match aya_build::build_ebpf([package], aya_build::Toolchain::Custom(TOOLCHAIN)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!(
                "the eBPF programs did not build ({error:#}): if a tool is missing, run `cargo xtask setup` once"
            );
            ExitCode::FAILURE
        }
    }
}

/// Whether the toolchain, its source and the linker are there; else what is missing.
fn tools() -> Result<(), String> {
    let sysroot = Command::new("rustup")
        .args(["run", TOOLCHAIN, "rustc", "--print", "sysroot"])
        .output()
        .ok()
        .filter(|out| out.status.success())
        .map(|out| PathBuf::from(String::from_utf8_lossy(&out.stdout).trim()))
        .ok_or_else(|| format!("the toolchain {TOOLCHAIN} is not installed"))?;
    if !sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").exists() {
        return Err(format!("the toolchain {TOOLCHAIN} lacks rust-src"));
    }
    let found =
        env::var_os("PATH").is_some_and(|path| env::split_paths(&path).any(|dir| dir.join("bpf-linker").is_file()));
    if found { Ok(()) } else { Err("bpf-linker is not installed".to_owned()) }
}
