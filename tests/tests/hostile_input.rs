//! What must hold for any bytes, held for every seed of the fuzz targets; `cargo xtask fuzz` goes
//! on from these.

use std::{collections::BTreeSet, fs, path::Path};

#[path = "../../fuzz/src/lib.rs"]
#[expect(unreachable_pub, reason = "public for the fuzz targets")]
mod checks;

fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds").join(target);
    let mut seeds: Vec<_> = fs::read_dir(&directory)
        .unwrap_or_else(|e| panic!("{}: {e}", directory.display()))
        .map(|entry| {
            let path = entry.unwrap().path();
            (path.display().to_string(), fs::read(path).unwrap())
        })
        .collect();
    seeds.sort();
    seeds
}

/// Runs a check over its seeds, each whole, cut and with a byte changed, so that the edges of what
/// is valid are met too.
#[track_caller]
fn hold(target: &str) {
    let check = checks::check(target);
    let seeds = seeds(target);
    assert!(!seeds.is_empty(), "no seeds of {target}");
    for (name, bytes) in seeds {
        eprintln!("{name}");
        check(&bytes);
        for part in 1..4 {
            let at = bytes.len() * part / 4;
            check(&bytes[..at]);
            if let Some(byte) = bytes.get(at) {
                let mut changed = bytes.clone();
                changed[at] = byte.wrapping_add(u8::try_from(17 * part).unwrap());
                check(&changed);
            }
        }
    }
}

/// One test per target, so that they run beside each other and a failure names its target.
macro_rules! targets {
    ($($target:ident)*) => {
        $(#[test] fn $target() { hold(stringify!($target)); })*
        const TARGETS: &[&str] = &[$(stringify!($target)),*];
    };
}

targets!(
    bearer btf cgroup checkpoint dialects dns epoch facts flows http hubble inventory merge names observer options policies ring snapshot sockets state watch
);

#[test]
fn every_check_has_a_target_seeds_and_a_test() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
    let names = |directory: &str| -> BTreeSet<String> {
        fs::read_dir(fuzz.join(directory))
            .unwrap()
            .map(|e| e.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
            .collect()
    };
    let checks: BTreeSet<String> = checks::CHECKS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names("fuzz_targets"), checks);
    assert_eq!(names("seeds"), checks);
    assert_eq!(TARGETS.iter().map(|t| (*t).to_owned()).collect::<BTreeSet<_>>(), checks);
}
