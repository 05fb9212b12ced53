//! A real Prometheus (Debian package `prometheus`) on a node of the lab.

use std::{
    fmt::Write as _,
    fs,
    os::fd::{AsFd as _, OwnedFd},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{
    agent::{self, LISTEN},
    lab::{Lab, process, wait_until},
};

/// Where it listens, in the node's namespace.
pub const PROMETHEUS: &str = "127.0.0.1:9090";

/// A running Prometheus. Dropping it kills it.
#[derive(Debug)]
pub struct Prometheus {
    child: Child,
    netns: OwnedFd,
}

impl Prometheus {
    /// Starts it on a node, scraping that node's agent every second, and waits until it is ready.
    ///
    /// # Errors
    /// It is not installed, or not ready within 20 seconds.
    pub fn start(lab: &Lab, node: usize) -> Result<Self> {
        let directory = lab.directory.join(format!("prometheus-{node}"));
        fs::create_dir(&directory)?;
        let config = directory.join("prometheus.yml");
        fs::write(
            &config,
            format!(
                "global: {{scrape_interval: 1s, scrape_timeout: 1s}}\nscrape_configs: [{{job_name: guardrail, static_configs: [{{targets: ['{LISTEN}']}}]}}]\n"
            ),
        )?;
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", directory.join("data").display()))
            .arg(format!("--web.listen-address={PROMETHEUS}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(directory.join("stderr"))?);
        let child = lab.spawn_on_node(node, "prometheus", command)?;
        let prometheus = Self { child, netns: lab.nodes[node].netns.as_fd().try_clone_to_owned()? };
        wait_until(Duration::from_secs(20), "Prometheus is ready", || {
            matches!(prometheus.get("/-/ready"), Ok((200, _))).then_some(())
        })
        .with_context(|| fs::read_to_string(directory.join("stderr")).unwrap_or_default())?;
        Ok(prometheus)
    }

    fn get(&self, path: &str) -> Result<(u16, String)> {
        agent::get(&self.netns, PROMETHEUS.parse()?, path)
    }

    /// An instant query; gives `data.result`.
    ///
    /// # Errors
    /// No answer, or an error as the answer.
    pub fn query(&self, promql: &str) -> Result<Value> {
        let mut encoded = String::new();
        for byte in promql.bytes() {
            if byte.is_ascii_alphanumeric() {
                encoded.push(char::from(byte));
            } else {
                write!(encoded, "%{byte:02X}")?;
            }
        }
        let (status, body) = self.get(&format!("/api/v1/query?query={encoded}"))?;
        let answer: Value = serde_json::from_str(&body).context("Prometheus answers with JSON")?;
        if status != 200 {
            bail!("Prometheus answers {status}: {answer}");
        }
        Ok(answer["data"]["result"].clone())
    }

    /// Ends it.
    ///
    /// # Errors
    /// It does not end within ten seconds.
    pub fn stop(&mut self) -> Result<()> {
        // SAFETY: our own child, not yet waited for.
        unsafe { libc::kill(self.child.id().cast_signed(), libc::SIGTERM) };
        process::wait(&mut self.child, Duration::from_secs(10)).context("Prometheus does not end")?;
        Ok(())
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
