//! The agent's HTTP surface, as anyone who reaches its port may talk to it.

use std::{
    fs,
    sync::{Arc, OnceLock},
    time::Duration,
};

use guardrail_agent::{
    answer::Answer,
    auth::{Guard, ReviewLimits},
    fuzzing,
    http::{Query, Readiness, router},
    serve,
};
use guardrail_graph::{Observer, ObserverConfig, Timestamp};
use guardrail_kube::{Api, Source};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    runtime::Runtime,
    sync::{mpsc, watch},
    time::timeout,
};

/// Nothing listens there: every token is one that cannot be reviewed.
const NO_API_SERVER: &str = r#"{"apiVersion": "v1", "kind": "Config", "current-context": "c",
    "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}], "users": [{"name": "u", "user": {}}],
    "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}]}"#;

struct Surface {
    runtime: Runtime,
    open: axum::Router,
    guarded: axum::Router,
}

fn surface() -> &'static Surface {
    static SURFACE: OnceLock<Surface> = OnceLock::new();
    SURFACE.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let config = std::env::temp_dir().join(format!("guardrail-fuzz-{}", std::process::id()));
        fs::write(&config, NO_API_SERVER).expect("a kubeconfig");
        let api = runtime.block_on(Api::new(Source::file(config.clone()), "guardrail-fuzz")).expect("a client");
        let _ = fs::remove_file(config);
        let guard = Arc::new(Guard::new(Arc::new(api), None, ReviewLimits::default()));
        let (queries, mut asked) = mpsc::channel(4);
        runtime.spawn(async move {
            while let Some(query) = asked.recv().await {
                match query {
                    Query::Graph(reply) => {
                        let at = Timestamp::from_unix_seconds(1_700_000_000);
                        let document = Observer::new(ObserverConfig::new("node", "instance", at)).document(at);
                        drop(reply.send(Some(Answer::of(Arc::new(document)))));
                    }
                    Query::Epochs(reply) => drop(reply.send(Vec::new())),
                    Query::Metrics(reply) => drop(reply.send("# EOF\n".to_owned())),
                }
            }
        });
        let ready = watch::channel(Readiness::default()).1;
        let open = router(queries.clone(), ready.clone(), None);
        Surface { runtime, open, guarded: router(queries, ready, Some(guard)) }
    })
}

/// Whatever is sent, the connection ends, and what comes back are answers of HTTP with statuses
/// that the surface has.
pub(super) fn exchange(bytes: &[u8]) {
    let Surface { runtime, open, guarded } = surface();
    for router in [open, guarded] {
        let limits = serve::Limits { head: Duration::from_secs(1), ..serve::Limits::default() };
        let answer = runtime.block_on(async {
            let (client, server) = tokio::io::duplex(1 << 20);
            let (mut read, mut write) = tokio::io::split(client);
            let talk = async {
                // A server that refuses may close before it has read everything.
                let _ = write.write_all(bytes).await;
                let _ = write.shutdown().await;
                let mut answer = Vec::new();
                let _ = read.read_to_end(&mut answer).await;
                answer
            };
            let serve = fuzzing::exchange(server, router.clone(), limits);
            timeout(Duration::from_secs(8), async { tokio::join!(talk, serve).0 }).await.expect("the connection ends")
        });
        assert!(answer.len() <= 1024 * (bytes.len() + 1), "{} bytes for {}", answer.len(), bytes.len());
        if !answer.is_empty() {
            let head = String::from_utf8_lossy(&answer[..answer.len().min(12)]).into_owned();
            let status = head.strip_prefix("HTTP/1.1 ").or_else(|| head.strip_prefix("HTTP/1.0 ")).unwrap_or("no HTTP");
            assert!(["200", "400", "401", "404", "405", "414", "429", "431", "503"].contains(&status), "{head:?}");
        }
    }
}

/// The value of an Authorization header gives a token without blanks around it, no longer than the
/// header, or none.
pub(super) fn bearer(bytes: &[u8]) {
    use axum::http::{HeaderMap, HeaderValue, header::AUTHORIZATION};
    let Ok(value) = HeaderValue::from_bytes(bytes) else { return };
    let headers = HeaderMap::from_iter([(AUTHORIZATION, value)]);
    if let Some(token) = fuzzing::bearer(&headers) {
        assert!(!token.is_empty() && token == token.trim() && token.len() < bytes.len());
        assert!(!token.contains(char::is_control), "{token:?}");
        assert!(bytes[..6].eq_ignore_ascii_case(b"bearer"));
    }
}
