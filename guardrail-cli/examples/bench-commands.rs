//! What the commands cost on large graphs, from files to files: 100,000 edges over 5,000 workloads,
//! and thirty graphs of 10,000 edges; those of a plan on 500 namespaces and 50,000 edges. Prints
//! one line of figures a command; started by `cargo xtask bench policy`. With a directory as its
//! argument, the graphs and what the commands write stay there.
//!
//! Each command runs in a process of its own, this program again, which prints its most memory and
//! the time on CPUs that it took: what others do on the machine changes that least.

use std::{
    collections::BTreeSet,
    env,
    ffi::OsStr,
    fs::{self, File},
    io::BufWriter,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

use guardrail_graph::snapshot::Side;

mod synthetic;

use synthetic::{Size, peak_memory_mib};

/// The first argument of a process that is the command.
const COMMAND: &str = "guardrail";
/// Of each command; the fastest run counts.
const RUNS: usize = 3;

fn main() -> ExitCode {
    let mut args = env::args_os().skip(1).peekable();
    if args.peek().is_some_and(|first| first == COMMAND) {
        let code = guardrail_cli::run(args);
        eprintln!("took {} {}", peak_memory_mib().unwrap_or_default(), cpu_ms().unwrap_or_default());
        return code;
    }
    let scratch = tempfile::tempdir().expect("a directory");
    let directory = args.next().map_or_else(|| scratch.path().to_owned(), PathBuf::from);
    fs::create_dir_all(&directory).expect("a directory");
    let path = |name: &str| directory.join(name);
    let large = Size { workloads: 5_000, namespaces: 250, edges: 100_000, nodes: 1 };
    let [client, server, merged] = ["client.json", "server.json", "merged.json"].map(path);
    write(&client, large, &[Side::Client], 0);
    write(&server, large, &[Side::Server], 0);
    measure("graph of 100,000 edges", large.edges, &["graph", "-o", "json"], [&client], &merged);
    measure("merge of two", large.edges, &["merge"], [&client, &server], &merged);
    let policies = path("policies");
    for (what, mode) in [("export", &[][..]), ("export --egress", &["--egress"])] {
        let mut args =
            vec!["export", "--phase", "default-deny", "--force", "--directory", policies.to_str().expect("text")];
        args.extend(mode);
        measure(what, large.edges, &args, [&merged], &path("report"));
    }
    let day = Size { workloads: 1_000, namespaces: 50, edges: 10_000, nodes: 1 };
    let days: Vec<PathBuf> = (0..30).map(|day| path(&format!("day-{day}.json"))).collect();
    for (epoch, file) in (0..).zip(&days) {
        write(file, day, &[Side::Client, Side::Server], epoch);
    }
    for count in [3, 10, 30] {
        let what = format!("merge of {count} times 10,000");
        measure(&what, count * day.edges, &["merge"], &days[..count], &merged);
    }
    planned(&directory);
    ExitCode::SUCCESS
}

/// What this process took on CPUs, in user space and in the kernel.
fn cpu_ms() -> Option<u64> {
    /// What a tick of `/proc` is, on every Linux.
    const TICK_MS: u64 = 10;
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The name of the program may hold blanks; utime and stime are fields 12 and 13 after it.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let [user, system] = [fields.next()?, fields.next()?].map(str::parse::<u64>);
    Some((user.ok()? + system.ok()?) * TICK_MS)
}

/// The commands that read a plan.
fn planned(directory: &Path) {
    let path = |name: &str| directory.join(name).to_str().expect("text").to_owned();
    let size = Size { workloads: 5_000, namespaces: 500, edges: 50_000, nodes: 30 };
    let [file, plan, policies, out] = ["planned.json", "guardrail.yaml", "planned", "out"].map(path);
    write(Path::new(&file), size, &[Side::Client, Side::Server], 0);
    fs::write(&plan, plan_of_all_kinds()).expect("written");
    let here = ["--plan", &plan, "--environment", "production"];
    let export = [&["export", "--directory", &policies][..], &here].concat();
    let status = [&["status", "--policies", &policies][..], &here].concat();
    let drift = [&["drift", "--policies", &policies, "--against", &policies][..], &here].concat();
    let out = Path::new(&out);
    measure("export --plan", size.edges, &export, [&file], out);
    measure("status with a plan", size.edges, &status, [&file], out);
    measure("drift with a plan", size.edges, &drift, [&file], out);
}

/// Namespaces of every phase, sensitive workloads in some of them, a shared service, exceptions.
fn plan_of_all_kinds() -> String {
    let mut text = "apiVersion: guardrail.dev/v1alpha1
kind: Plan
spec:
  environments:
    production:
      phase: constrain
      namespaces: {team-1*: {phase: default-deny, egress: true}, team-2*: {phase: default-deny}}
      sensitive: [team-3/*, team-33/*, team-100/*]
      gates: {window: 0s}
  shared:
  - {workload: team-0/Deployment/service-0, ports: [8000]}
  exceptions:
"
    .to_owned();
    for index in 0..20 {
        let (from, to) = (index * 7 + 1, index * 11 + 2);
        text += &format!(
            "  - {{id: inc-{index}, from: team-{from}/Deployment/service-{from}, to: team-{to}/Deployment/service-{to}, ports: [9999], expires: 2100-01-01, reason: bench, owner: bench}}\n"
        );
    }
    text
}

fn write(path: &Path, size: Size, sides: &[Side], epoch: i64) {
    let file = BufWriter::new(File::create(path).expect("a file"));
    serde_json::to_writer(file, &size.snapshot(&sides.iter().copied().collect::<BTreeSet<_>>(), epoch))
        .expect("written");
}

/// Runs a command and prints what it took.
fn measure(what: &str, edges: usize, args: &[&str], files: impl IntoIterator<Item = impl AsRef<OsStr>>, out: &Path) {
    let files: Vec<_> = files.into_iter().collect();
    let mut runs = Vec::new();
    for _ in 0..RUNS {
        let mut command = Command::new(env::current_exe().expect("this program"));
        command.arg(COMMAND).args(args).args(&files);
        command.stdout(File::create(out).expect("a file")).stderr(Stdio::piped());
        let before = Instant::now();
        let ended = command.output().expect("started");
        let took = before.elapsed();
        let said = String::from_utf8_lossy(&ended.stderr);
        let told = said.lines().find_map(|line| line.strip_prefix("took ")?.split_once(' '));
        let told = told.and_then(|(peak, cpu)| Some((peak.parse::<u64>().ok()?, cpu.parse::<u64>().ok()?)));
        let (peak, cpu) = told.unwrap_or_else(|| panic!("{what}: {said}"));
        assert!(ended.status.success(), "{what}: {said}");
        runs.push((took, cpu, peak));
    }
    let (took, cpu, peak) = runs.into_iter().min().expect("a run");
    let [written, bytes] = [fs::metadata(out).map_or(0, |m| m.len()), peak * 1024 * 1024].map(|b| b / edges as u64);
    println!(
        "{what}: {} ms, {cpu} ms of CPU; peak {peak} MiB, {bytes} bytes an edge; {written} bytes an edge written",
        took.as_millis()
    );
}
