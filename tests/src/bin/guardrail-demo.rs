//! The demo: the shop under the agent and a real Prometheus, and what guardrail makes of it.
//!
//! Usage: `guardrail-demo [--seconds N] [--output DIR] [--open]`. Leaves `graph.json`,
//! `graph.html`, `policies/*.yaml`, `metrics.txt` and `truth.txt` in DIR (`target/demo`), and in
//! `way/` the files of the whole way from a plan to the end of an exception.

use std::{
    fs,
    io::{IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use guardrail_tests::{
    agent::{Agent, guardrail},
    bins,
    cluster::Cluster,
    policies,
    prometheus::Prometheus,
    shop::Shop,
    small,
    way::{self, Ends, Step},
};

fn main() -> ExitCode {
    match Options::from_args().and_then(|options| run(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("guardrail-demo: {error:#}");
            ExitCode::from(2)
        }
    }
}

struct Options {
    seconds: u64,
    output: PathBuf,
    /// Show the page in a browser at the end.
    open: bool,
}

impl Options {
    fn from_args() -> Result<Self> {
        let mut options = Self { seconds: 5, output: "target/demo".into(), open: false };
        let mut args = std::env::args().skip(1);
        while let Some(option) = args.next() {
            if option == "--open" {
                options.open = true;
                continue;
            }
            let value = args.next().with_context(|| format!("{option} needs a value"))?;
            match option.as_str() {
                "--seconds" => {
                    options.seconds =
                        value.parse().ok().filter(|s| (1..=45).contains(s)).context("--seconds takes 1 to 45")?;
                }
                "--output" => options.output = value.into(),
                _ => bail!("unknown option {option}; there are --seconds N, --output DIR and --open"),
            }
        }
        Ok(options)
    }
}

fn run(options: &Options) -> Result<()> {
    // SAFETY: geteuid(2) cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        bail!("needs root: it makes network namespaces and cgroups, and loads eBPF programs; run it with sudo");
    }
    let begin = Instant::now();
    let steps = Steps::new();
    let mut shop = steps
        .take("opening a small shop: real processes in pods made of cgroups and network namespaces", || {
            Shop::start(&bins::find("guardrail-lab-app"), &["node-a"], 1)
        })?;
    let mut agent = steps.take("starting guardrail-agent (database pools and queues are connected already)", || {
        Agent::start(&shop.lab, 0, &[])
    })?;
    let mut prometheus = steps.take("starting Prometheus", || Prometheus::start(&shop.lab, 0))?;
    let rounds = steps.take(&format!("customers shop for {} s", options.seconds), || {
        let until = Instant::now() + Duration::from_secs(options.seconds);
        shop.run()?;
        let mut rounds = 1;
        while Instant::now() < until {
            shop.run_again(rounds)?;
            rounds += 1;
        }
        Ok(rounds)
    })?;
    let truth = shop.truth()?;
    let snapshot = steps.take("waiting until the graph shows everything", || small::eventually_true(&agent, &truth))?;
    let query = "sum(guardrail_flow_connections_total{outcome=\"opened\"})";
    let counted = steps.take("asking Prometheus", || {
        guardrail_tests::lab::wait_until(Duration::from_secs(10), "Prometheus has scraped the agent", || {
            prometheus.query(query).ok()?[0]["value"][1].as_str().map(str::to_owned)
        })
    })?;
    let metrics = agent.get("/metrics")?.1;
    let graph = agent.get("/v1/graph")?.1;
    let mut way = Vec::new();
    let directory = shop.lab.directory.join("way");
    steps.take("closing the database, and meeting somebody who wants in", || {
        way::walk(&shop.lab, &agent, &directory, &Ends::of_shop(&shop), &mut |step| {
            way.push(step.clone());
            Ok(())
        })
    })?;
    steps.take("closing", || {
        prometheus.stop()?;
        shop.stop()?;
        let status = agent.terminate()?;
        if status.success() { Ok(()) } else { bail!("the agent ended with {status}:\n{}", agent.said()) }
    })?;
    let logged: String = truth.edges.keys().map(|edge| format!("{edge}\n")).collect();
    let texts = [("graph.json", graph), ("metrics.txt", metrics), ("truth.txt", logged)];
    leave(&options.output, &texts, &[("policies", &agent.export_dir), ("way", &directory)])?;
    steps.clear();

    println!("{}", summary(&shop.lab.cluster, rounds));
    println!();
    std::io::stdout().flush()?;
    let graph_file = options.output.join("graph.json");
    let status = Command::new(bins::find("guardrail"))
        .arg("graph")
        .arg(&graph_file)
        .stdin(Stdio::null())
        .status()
        .context("cannot run guardrail graph")?;
    if !status.success() {
        bail!("guardrail graph ended with {status}");
    }
    let policies = policies::read(&options.output.join("policies"))?;
    println!();
    println!(
        "The applications logged {} true edges themselves: all were found, none was invented, complete: {}.",
        truth.edges.len(),
        snapshot["coverage"]["complete"]
    );
    println!(
        "{} that only failed, and a multicast sender, are shown above but get no rule. Prometheus counted {counted} connections.",
        truth.failed.len()
    );
    println!();
    told(&way);
    println!();
    let shown = options.output.display();
    println!("  {shown}/graph.html    the same as a page: open it in a browser");
    println!("  {shown}/graph.json    the graph; try: guardrail graph {shown}/graph.json -o mermaid");
    println!(
        "  {shown}/policies/     {} NetworkPolicies that allow what was seen, and nothing else",
        policies::network_policies(&policies).count()
    );
    println!("  {shown}/way/          plan, snapshots and policies of the way; try its commands there");
    println!("  {shown}/metrics.txt   what Prometheus scraped");
    println!("  {shown}/truth.txt     the true edges, from the applications' own logs");
    drop(shop);
    if options.open {
        let page = options.output.join("graph.html");
        let opened = Command::new("xdg-open").arg(&page).stdin(Stdio::null()).status();
        if !opened.is_ok_and(|status| status.success()) {
            eprintln!("no browser opened (xdg-open): open {} yourself", page.display());
        }
    }
    eprintln!("\nDone in {:.0} s; nothing is left running.", begin.elapsed().as_secs_f32());
    Ok(())
}

/// The way, step by step.
fn told(way: &[Step]) {
    println!("The whole way, on the shop's own packets:");
    for step in way {
        match step {
            Step::Edit(lines) => {
                println!("\n# in guardrail.yaml, by hand, for production:");
                print!("{lines}");
            }
            Step::Applied(name) => println!("\n# {name}/ is in force now"),
            Step::Called { who, passed } => {
                println!("\n# {who}: {}", if *passed { "connected" } else { "no answer, its packets are dropped" });
            }
            Step::Command { line, code, stdout, .. } => {
                println!("\n$ {line}");
                // `unblock` explains why, and shows the rule: the demo leaves that out.
                match stdout.split_once('\n').zip(stdout.find("\nIt opens ")) {
                    Some(((first, _), rest)) if line.starts_with("guardrail unblock") => {
                        print!("{first}\n…\n{}", &stdout[rest..]);
                    }
                    _ => print!("{stdout}"),
                }
                if *code != 0 {
                    println!("# exit code {code}");
                }
            }
        }
    }
}

fn summary(cluster: &Cluster, rounds: usize) -> String {
    let mut namespaces: Vec<_> = cluster.workloads.iter().map(|w| w.namespace.as_str()).collect();
    namespaces.sort_unstable();
    namespaces.dedup();
    format!(
        "Who talked to whom: {} workloads with {} pods in {} namespaces, {rounds} rounds of calls",
        cluster.workloads.len(),
        cluster.pods.len(),
        namespaces.len()
    )
}

/// Puts the files in place as a whole: an interrupted demo leaves those of the one before.
fn leave(output: &Path, texts: &[(&str, String)], directories: &[(&str, &Path)]) -> Result<()> {
    let parent = output.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = output.file_name().context("--output names no directory")?;
    let next = parent.join(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    fs::create_dir_all(&next).with_context(|| format!("cannot make {}", next.display()))?;
    for (name, text) in texts {
        fs::write(next.join(name), text)?;
    }
    let page = guardrail(["graph".as_ref(), next.join("graph.json").as_os_str(), "--output=html".as_ref()])?;
    if !page.status.success() {
        bail!("guardrail graph --output=html: {}: {}", page.status, String::from_utf8_lossy(&page.stderr));
    }
    fs::write(next.join("graph.html"), page.stdout)?;
    for (name, directory) in directories {
        copy_tree(directory, &next.join(name))?;
    }
    if output.exists() {
        fs::remove_dir_all(output).with_context(|| format!("cannot replace {}", output.display()))?;
    }
    fs::rename(&next, output).with_context(|| format!("cannot put {} in its place", output.display()))
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))?.flatten() {
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if source.is_dir() {
            copy_tree(&source, &target)?;
        } else if !entry.file_name().to_string_lossy().starts_with('.') {
            fs::copy(&source, &target).with_context(|| format!("cannot copy {}", source.display()))?;
        }
    }
    Ok(())
}

/// Progress on standard error: one line that is overwritten on a terminal, one line per step
/// elsewhere.
struct Steps {
    terminal: bool,
}

impl Steps {
    fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal() }
    }

    fn take<T>(&self, what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        if self.terminal {
            eprint!("\r\x1b[K… {what}");
        } else {
            eprintln!("- {what}");
        }
        let result = work();
        if result.is_err() {
            self.clear();
        }
        result.with_context(|| format!("failed while {what}"))
    }

    fn clear(&self) {
        if self.terminal {
            eprint!("\r\x1b[K");
        }
    }
}
