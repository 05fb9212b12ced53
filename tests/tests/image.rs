//! The container image itself, run as deploy/ runs it. `cargo xtask image --check` builds the image
//! and runs this.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use guardrail_tests::{
    app::scenario::{Call, How, Scenario, Serve},
    bins,
    container::Container,
    deployed::Deployed,
    lab::{Lab, process},
    small::{base, cluster, deployment, eventually_true, go, lab, start, truth},
};
use serde_json::Value;

/// The archive that `cargo xtask image` wrote, unpacked: its configuration and its root.
fn unpack(into: &Path) -> (Value, PathBuf) {
    let archive = std::env::var_os("GUARDRAIL_IMAGE")
        .expect("GUARDRAIL_IMAGE names the archive: use `cargo xtask image --check`");
    let (layers, root) = (into.join("layers"), into.join("root"));
    let untar = |tar: &Path, into: &Path| {
        fs::create_dir_all(into).unwrap();
        let done = Command::new("tar").arg("-xf").arg(tar).arg("-C").arg(into).status().unwrap();
        assert!(done.success(), "{}", tar.display());
    };
    let json = |file: &str| serde_json::from_slice::<Value>(&fs::read(layers.join(file)).unwrap()).unwrap();
    untar(Path::new(&archive), &layers);
    let manifest = json("manifest.json")[0].take();
    for layer in manifest["Layers"].as_array().unwrap() {
        untar(&layers.join(layer.as_str().unwrap()), &root);
    }
    (json(manifest["Config"].as_str().unwrap()), root)
}

/// Runs a command of the image to its end, on the first node, and gives what it printed.
fn run(lab: &Lab, root: &Path, name: &str, args: &[&str]) -> String {
    let mut command = Command::new(format!("/usr/bin/{name}"));
    command.env_clear().args(args).stdin(Stdio::null()).stdout(Stdio::piped());
    let container = Container::new(root.to_owned());
    let mut child = lab.spawn_contained(0, "image", command, &container).unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut printed = String::new();
    std::io::Read::read_to_string(&mut out, &mut printed).unwrap();
    let status = process::wait(&mut child, std::time::Duration::from_secs(10)).unwrap();
    assert!(status.success(), "{name} {args:?}: {status}");
    printed
}

#[test]
#[ignore = "needs the image: `cargo xtask image --check` builds it and runs this"]
fn the_image_holds_both_programs_and_observes_under_deploys_rights() {
    if !bins::can_run("the container image") {
        return;
    }
    let mut c = cluster(&["node-a"]);
    let server = deployment(&mut c, "server", 8080, 0);
    let client = deployment(&mut c, "client", 8080, 0);
    let to = format!("{}:8080", c.pod(&server).addresses.0);
    let lab = lab(c).unwrap();
    let (config, root) = unpack(&lab.directory.join("image"));
    let config = &config["config"];
    assert_eq!(config["User"], "0:0");
    assert_eq!(config["Entrypoint"], serde_json::json!(["/usr/bin/guardrail-agent"]));
    let version = &config["Labels"]["org.opencontainers.image.version"];
    assert_eq!(version, env!("CARGO_PKG_VERSION"));
    let files: Vec<_> = fs::read_dir(root.join("usr/bin")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!((files.len(), fs::read_dir(&root).unwrap().count()), (2, 1), "two names and nothing else: {files:?}");
    for name in ["guardrail-agent", "guardrail"] {
        let printed = run(&lab, &root, name, &["--version"]);
        assert_eq!(printed, format!("{name} {}\n", env!("CARGO_PKG_VERSION")));
    }

    let mut agent = Deployed::new(&lab, 0, "plain", Container::new(root.clone())).unwrap().spawn(&lab, 0).unwrap();
    agent.wait_ready().unwrap();
    let calls = Scenario { after: vec![Call::new(&to, How::Tcp, 5)], ..Scenario::default() };
    let serve = Scenario { serve: vec![Serve::tcp(8080)], ..Scenario::default() };
    go(&mut start(&lab, vec![(&server, serve), (&client, calls)]).unwrap()).unwrap();
    eventually_true(&agent, &truth(&lab).unwrap()).unwrap();
    // As the manual says: `kubectl exec … -- guardrail graph http://127.0.0.1:9465/v1/graph`.
    let table = run(&lab, &root, "guardrail", &["graph", "http://127.0.0.1:9465/v1/graph"]);
    assert!(table.contains("lab/client") && table.contains("lab/server"), "{table}");
    assert_eq!(agent.terminate().unwrap().code(), Some(0), "{}", agent.said());
    assert!(base(&agent.state_dir).is_some());
}
