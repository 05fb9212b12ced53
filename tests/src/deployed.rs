//! The agent as deploy/ runs it: what `kubectl kustomize` makes of an overlay, turned into a
//! [`Container`] in the lab.
//!
//! Only what the lab has no counterpart for is exchanged: a file instead of the API server (and so
//! no reviews of tokens), the node's own cgroup instead of the machine's.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{
    agent::{Agent, LISTEN},
    container::{CAPABILITIES, Container},
    lab::Lab,
};

/// The folder deploy/.
#[must_use]
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// The objects of a kustomization.
///
/// # Errors
/// `kubectl` is not installed, or refuses it.
pub fn render(kustomization: &Path) -> Result<Vec<Value>> {
    let out = Command::new("kubectl").arg("kustomize").arg(kustomization).output().context("cannot run kubectl")?;
    if !out.status.success() {
        bail!("kubectl kustomize {}: {}", kustomization.display(), String::from_utf8_lossy(&out.stderr));
    }
    serde_saphyr::from_multiple(std::str::from_utf8(&out.stdout)?).context("kubectl kustomize prints YAML")
}

/// The objects of an overlay.
///
/// # Errors
/// As [`render`].
pub fn overlay(name: &str) -> Result<Vec<Value>> {
    render(&directory().join("overlays").join(name))
}

/// The folder of the Helm chart.
#[must_use]
pub fn chart() -> PathBuf {
    directory().join("helm/guardrail")
}

/// Has Helm's engine run a piece of Python with `chart`, its folder, and `values`; gives what it
/// returns.
///
/// # Errors
/// The engine is not installed, or refuses the chart or the values.
fn helm(script: &str, values: &Value) -> Result<Value> {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/helm/bin/python3");
    let prologue = "import json, sys, helm_python\nchart, values = sys.argv[1], json.loads(sys.argv[2])\n";
    let out = Command::new(&python)
        .args(["-c", &format!("{prologue}print(json.dumps({script}))")])
        .arg(chart())
        .arg(values.to_string())
        .output()
        .with_context(|| format!("cannot run {}: `cargo xtask setup` installs it", python.display()))?;
    if !out.status.success() {
        bail!("{}", String::from_utf8_lossy(&out.stderr));
    }
    serde_json::from_slice(&out.stdout).context("the engine prints JSON")
}

/// The objects that the chart makes of these values in the namespace `guardrail`.
///
/// # Errors
/// The engine is not installed, or refuses the chart or the values.
pub fn release(values: &Value) -> Result<Vec<Value>> {
    let load = "helm_python.Chart.load(chart)";
    let files = helm(&format!("{load}.render(values, name='guardrail', namespace='guardrail')"), values)?;
    let mut objects = Vec::new();
    for (name, text) in files.as_object().context("a file by name")? {
        let text = text.as_str().context("text")?;
        if name.ends_with(".yaml") && !text.trim().is_empty() {
            let read: Vec<Value> = serde_saphyr::from_multiple(text).with_context(|| format!("{name}:\n{text}"))?;
            objects.extend(read.into_iter().filter(|object| !object.is_null()));
        }
    }
    Ok(objects)
}

/// What Helm's linter says of the chart.
///
/// # Errors
/// The engine is not installed.
pub fn lint_chart() -> Result<Value> {
    helm("helm_python.lint(chart)", &Value::Null)
}

/// The pod template's spec in an overlay's DaemonSet.
///
/// # Errors
/// There is none.
pub fn pod(objects: &[Value]) -> Result<&Value> {
    let set = objects.iter().find(|o| o["kind"] == "DaemonSet").context("a DaemonSet")?;
    Ok(&set["spec"]["template"]["spec"])
}

/// An overlay's agent, ready to be started on a node of a lab.
#[derive(Debug)]
pub struct Deployed {
    /// Its container; change it before the start.
    pub container: Container,
    /// Its arguments; change them before the start.
    pub args: Vec<String>,
    state_dir: PathBuf,
}

impl Deployed {
    /// The overlay's DaemonSet on a node, in this container root (see [`Container::new`],
    /// [`Container::of_program`]).
    ///
    /// # Errors
    /// The overlay does not render, or asks for something that the lab does not know.
    pub fn new(lab: &Lab, node: usize, overlay: &str, container: Container) -> Result<Self> {
        let objects = self::overlay(overlay)?;
        let pod = pod(&objects)?;
        let spec = &pod["containers"][0];
        let security = &spec["securityContext"];
        let mut container = container;
        container.host_pid = pod["hostPID"] == true;
        container.capabilities = texts(&security["capabilities"]["add"])
            .iter()
            .map(|name| {
                let known = CAPABILITIES.iter().find(|(known, _)| known == name);
                known.map(|(_, number)| *number).with_context(|| format!("a known capability instead of {name}"))
            })
            .collect::<Result<_>>()?;
        if security["seccompProfile"]["type"] == "Unconfined" {
            container.refused.clear();
        }
        let state_dir = lab.directory.join(format!("contained-state-{}", lab.nodes[node].name));
        fs::create_dir_all(&state_dir)?;
        for mount in spec["volumeMounts"].as_array().into_iter().flatten() {
            let volumes = pod["volumes"].as_array().context("volumes")?;
            let volume = volumes.iter().find(|v| v["name"] == mount["name"]).context("the mount's volume")?;
            let outside = match volume["hostPath"]["path"].as_str() {
                Some("/sys/fs/cgroup") => lab.nodes[node].cgroup.clone(),
                Some("/var/lib/guardrail") => state_dir.clone(),
                Some("/sys/fs/bpf/guardrail") => pins(lab)?,
                other => bail!("the lab has no {other:?}"),
            };
            let inside = Path::new(mount["mountPath"].as_str().context("a mountPath")?);
            container = container.mount(&outside, inside, mount["readOnly"] == true);
        }
        container = container.mount(&lab.inventory(), Path::new("/inventory.yaml"), true);
        let args = texts(&spec["args"]).into_iter().filter_map(|arg| match arg.split('=').next() {
            Some("--inventory") => Some("--inventory=/inventory.yaml".to_owned()),
            Some("--auth" | "--auth-audience") => None,
            Some("--listen") => Some(format!("--listen={LISTEN}")),
            _ => Some(arg),
        });
        let args = args.chain([format!("--node={}", lab.nodes[node].name)]).collect();
        Ok(Self { container, args, state_dir })
    }

    /// Starts it; does not wait until it is ready.
    ///
    /// # Errors
    /// The container cannot be made, or the process not started.
    pub fn spawn(&self, lab: &Lab, node: usize) -> Result<Agent> {
        let mut command = Command::new("/usr/bin/guardrail-agent");
        command.env_clear().args(&self.args);
        Agent::spawn_contained(lab, node, command, &self.container, self.state_dir.clone())
    }
}

/// A directory in a BPF file system of the lab's own; it goes with the lab.
fn pins(lab: &Lab) -> Result<PathBuf> {
    let (mount, pins) = (lab.directory.join("bpffs"), lab.directory.join("bpffs/guardrail"));
    if !pins.exists() {
        fs::create_dir(&mount)?;
        let status = Command::new("mount").args(["-t", "bpf", "bpf"]).arg(&mount).status()?;
        if !status.success() {
            bail!("cannot mount a BPF file system at {}", mount.display());
        }
        fs::create_dir(&pins)?;
    }
    Ok(pins)
}

fn texts(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}
