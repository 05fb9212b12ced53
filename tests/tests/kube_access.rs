//! `--auth kube`: the API server decides who reads; whoever asks too much or too slowly is cut off.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use guardrail_agent::{
    answer::Answer,
    auth::{Guard, ReviewLimits, tls::Tls},
    http::{Query, Readiness, router},
    serve::{self, serve},
};
use guardrail_graph::{Observer, ObserverConfig, Timestamp};
use guardrail_kube::{Api, Source};
use guardrail_tests::apiserver::ApiServer;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        pki_types::{CertificateDer, ServerName, pem::PemObject as _},
    },
};
use tokio_util::sync::CancellationToken;

const REVIEWS: &str = "POST /apis/authentication.k8s.io/v1/tokenreviews";

struct Surface {
    address: SocketAddr,
    server: ApiServer,
    stop: CancellationToken,
    _dir: tempfile::TempDir,
}

impl Drop for Surface {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The agent's HTTP surface with a stand-in for the observer, guarded by a server that knows two
/// users of whom one may read.
async fn surface(tls: Option<Tls>, audience: Option<&str>, limits: ReviewLimits, bounds: serve::Limits) -> Surface {
    let server = ApiServer::start().unwrap();
    server.manners(|m| {
        m.tokens = Some(["agent".to_owned()].into());
        m.users.insert("prometheus-token".to_owned(), "system:serviceaccount:monitoring:prometheus".to_owned());
        m.users.insert("other-token".to_owned(), "system:serviceaccount:shop:web".to_owned());
        m.allowed.insert(("system:serviceaccount:monitoring:prometheus".to_owned(), "/metrics".to_owned()));
        m.audience = "guardrail".to_owned();
    });
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    std::fs::write(&token, "agent").unwrap();
    let kubeconfig = dir.path().join("config");
    std::fs::write(&kubeconfig, server.kubeconfig(Some(&token))).unwrap();
    let api = Arc::new(Api::new(Source::file(kubeconfig), "guardrail-tests").await.unwrap());
    let guard = Arc::new(Guard::new(api, audience.map(str::to_owned), limits));
    let (queries, mut asked) = mpsc::channel(4);
    tokio::spawn(async move {
        while let Some(query) = asked.recv().await {
            match query {
                Query::Graph(reply) => {
                    let at = Timestamp::from_unix_seconds(1_700_000_000);
                    let mut observer = Observer::new(ObserverConfig::new("node-a", "instance", at));
                    drop(reply.send(Some(Answer::of(Arc::new(observer.document(at))))));
                }
                Query::Epochs(reply) => drop(reply.send(Vec::new())),
                Query::Metrics(reply) => drop(reply.send("guardrail_edges 1\n".to_owned())),
            }
        }
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let router = router(queries, watch::channel(Readiness::default()).1, Some(guard));
    tokio::spawn(serve(listener, tls.map(Arc::new), router, bounds, stop.clone()));
    Surface { address, server, stop, _dir: dir }
}

async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, path: &str, token: Option<&str>) -> (u16, String) {
    let token = token.map_or_else(String::new, |t| format!("Authorization: Bearer {t}\r\n"));
    let request = format!("GET {path} HTTP/1.1\r\nHost: agent\r\n{token}Connection: close\r\n\r\n");
    // A server that refuses early may close before it has read everything: its answer counts.
    let _ = stream.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    (status, answer)
}

impl Surface {
    async fn get(&self, path: &str, token: Option<&str>) -> (u16, String) {
        exchange(TcpStream::connect(self.address).await.unwrap(), path, token).await
    }
}

#[tokio::test]
async fn the_api_server_decides_who_reads_and_probes_stay_open() {
    let surface = surface(None, None, ReviewLimits::default(), serve::Limits::default()).await;
    for (path, token, expected) in [
        ("/healthz", None, 200),
        ("/readyz", None, 503),
        ("/metrics", None, 401),
        ("/v1/graph", None, 401),
        ("/metrics", Some("nonsense"), 401),
        ("/metrics", Some("other-token"), 403),
        ("/metrics", Some("prometheus-token"), 200),
        ("/v1/graph", Some("prometheus-token"), 403),
        ("/metrics?x=1", Some("prometheus-token"), 200),
        ("/elsewhere", None, 404),
    ] {
        let (status, answer) = surface.get(path, token).await;
        assert_eq!(status, expected, "{path} {token:?}: {answer}");
        assert_eq!(answer.contains("guardrail_edges 1"), expected == 200 && path != "/healthz", "{answer}");
    }
    let (_, forbidden) = surface.get("/v1/graph", Some("prometheus-token")).await;
    assert!(forbidden.contains("grant the verb get on the nonResourceURL /v1/graph"), "{forbidden}");
}

#[tokio::test]
async fn answers_are_remembered_for_a_while_refusals_too() {
    let limits = ReviewLimits {
        allowed: Duration::from_millis(400),
        refused: Duration::from_millis(400),
        ..ReviewLimits::default()
    };
    let surface = surface(None, None, limits, serve::Limits::default()).await;
    for _ in 0..5 {
        assert_eq!(surface.get("/metrics", Some("prometheus-token")).await.0, 200);
        assert_eq!(surface.get("/metrics", Some("nonsense")).await.0, 401);
    }
    assert_eq!(surface.server.requests(REVIEWS), 2);
    // The permission is taken away, and that is noticed.
    surface.server.manners(|m| m.allowed.clear());
    let deadline = Instant::now() + Duration::from_secs(10);
    while surface.get("/metrics", Some("prometheus-token")).await.0 != 403 {
        assert!(Instant::now() < deadline, "the permission is remembered for ever");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn many_bad_tokens_reach_the_api_server_only_at_a_limited_rate_and_good_ones_go_on() {
    let limits = ReviewLimits { per_second: 5.0, ..ReviewLimits::default() };
    let surface = surface(None, None, limits, serve::Limits::default()).await;
    assert_eq!(surface.get("/metrics", Some("prometheus-token")).await.0, 200);
    let began = Instant::now();
    let mut refused = 0;
    for i in 0..600 {
        let (status, _) = surface.get("/metrics", Some(&format!("bad-{i}"))).await;
        assert!(status == 401 || status == 429, "{status}");
        refused += usize::from(status == 429);
    }
    let allowed = 11.0 + 5.0 * began.elapsed().as_secs_f64();
    let asked = surface.server.requests(REVIEWS);
    assert!(asked as f64 <= allowed, "{asked} reviews, at most {allowed:.0} are allowed");
    assert!(refused > 300, "{refused}");
    assert_eq!(surface.get("/metrics", Some("prometheus-token")).await.0, 200, "known tokens are not crowded out");
}

#[tokio::test]
async fn only_tokens_for_the_audience_count() {
    let good = surface(None, Some("guardrail"), ReviewLimits::default(), serve::Limits::default()).await;
    assert_eq!(good.get("/metrics", Some("prometheus-token")).await.0, 200);
    let bad = surface(None, Some("somebody-else"), ReviewLimits::default(), serve::Limits::default()).await;
    assert_eq!(bad.get("/metrics", Some("prometheus-token")).await.0, 401);
    // A server that takes no notice of the audience has not checked the token for it.
    let old = surface(None, Some("guardrail"), ReviewLimits::default(), serve::Limits::default()).await;
    old.server.manners(|m| m.no_audiences = true);
    assert_eq!(old.get("/metrics", Some("prometheus-token")).await.0, 401);
}

#[tokio::test]
async fn without_the_api_server_unknown_tokens_wait_and_known_ones_go_on() {
    let mut surface = surface(None, None, ReviewLimits::default(), serve::Limits::default()).await;
    assert_eq!(surface.get("/metrics", Some("prometheus-token")).await.0, 200);
    surface.server = ApiServer::start().unwrap();
    assert_eq!(surface.get("/metrics", Some("other-token")).await.0, 503);
    assert_eq!(surface.get("/metrics", Some("prometheus-token")).await.0, 200);
}

#[tokio::test]
async fn slow_and_oversized_requests_are_cut_off_and_connections_are_bounded() {
    let bounds = serve::Limits { connections: 4, head: Duration::from_millis(300), ..serve::Limits::default() };
    let surface = surface(None, None, ReviewLimits::default(), bounds).await;
    // Twice as many connections as are served at once, each sending half a head: they end by
    // themselves and make room.
    let mut slow = Vec::new();
    for _ in 0..8 {
        let mut stream = TcpStream::connect(surface.address).await.unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost:").await.unwrap();
        slow.push(stream);
    }
    assert_eq!(timeout(Duration::from_secs(5), surface.get("/healthz", None)).await.unwrap().0, 200);
    for mut stream in slow {
        let mut rest = Vec::new();
        timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await.expect("it is closed").ok();
        assert!(!rest.starts_with(b"HTTP/1.1 200"));
    }
    let (status, _) = surface.get("/healthz", Some(&"x".repeat(64 << 10))).await;
    assert!(status == 431 || status == 0, "{status}");
    let (status, _) = surface.get("/metrics", Some(&"x".repeat(9 << 10))).await;
    assert_eq!(status, 401, "a token that long is nobody's");
    assert_eq!(surface.server.requests(REVIEWS), 0);
}

fn certificate(dir: &std::path::Path) -> CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed(vec!["agent".to_owned()]).unwrap();
    std::fs::write(dir.join("tls.crt"), made.cert.pem()).unwrap();
    std::fs::write(dir.join("tls.key"), made.signing_key.serialize_pem()).unwrap();
    CertificateDer::from_pem_slice(made.cert.pem().as_bytes()).unwrap()
}

#[tokio::test]
async fn tls_comes_from_files_and_plain_text_gets_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let trusted = certificate(dir.path());
    let tls = Tls::from_files(dir.path().join("tls.crt"), dir.path().join("tls.key")).unwrap();
    let surface = surface(Some(tls), None, ReviewLimits::default(), serve::Limits::default()).await;
    let mut roots = RootCertStore::empty();
    roots.add(trusted).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(tokio_rustls::rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(surface.address).await.unwrap();
    let stream =
        TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("agent").unwrap(), stream).await.unwrap();
    let (status, answer) = exchange(stream, "/metrics", Some("prometheus-token")).await;
    assert_eq!(status, 200, "{answer}");
    let (status, answer) = surface.get("/metrics", Some("prometheus-token")).await;
    assert_eq!(status, 0, "{answer}");
}

#[tokio::test]
async fn a_bad_certificate_is_refused_with_its_file_and_one_can_be_made() {
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = (dir.path().join("tls.crt"), dir.path().join("tls.key"));
    let error = Tls::from_files(cert.clone(), key.clone()).err().unwrap().to_string();
    assert!(error.contains("tls.crt"), "{error}");
    std::fs::write(&cert, "no certificate").unwrap();
    let error = Tls::from_files(cert, key).err().unwrap().to_string();
    assert!(error.contains("tls.crt") && !error.contains('\n'), "{error}");
    assert!(Tls::self_signed(vec!["node-a".to_owned()]).is_ok());
}

/// A connection that comes from another loopback address.
async fn connect_from(source: &str, address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(source.parse().unwrap(), 0)).unwrap();
    socket.connect(address).await.unwrap()
}

#[tokio::test]
async fn who_holds_every_connection_does_not_keep_the_others_out() {
    let bounds = serve::Limits { connections: 8, head: Duration::from_secs(60), ..serve::Limits::default() };
    let surface = surface(None, None, ReviewLimits::default(), bounds).await;
    let mut held = Vec::new();
    for i in 0..24 {
        let mut stream = connect_from("127.0.0.2", surface.address).await;
        match i % 3 {
            0 => {}
            1 => stream.write_all(b"GET /healthz HTTP/1.1\r\nHost:").await.unwrap(),
            _ => {
                // Kept alive after an answer; a connection that had to make room already cannot be
                // written to.
                let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").await;
                let _ = timeout(Duration::from_secs(5), stream.read(&mut [0; 64])).await.unwrap();
            }
        }
        held.push(stream);
    }
    for _ in 0..20 {
        let (status, _) = timeout(Duration::from_secs(5), surface.get("/healthz", None)).await.expect("in time");
        assert_eq!(status, 200);
    }
}

#[tokio::test]
async fn connections_that_send_nothing_end_before_and_after_a_request_and_in_the_handshake() {
    let bounds = serve::Limits {
        head: Duration::from_millis(300),
        handshake: Duration::from_millis(300),
        ..serve::Limits::default()
    };
    let plain = surface(None, None, ReviewLimits::default(), bounds).await;
    let tls =
        surface(Some(Tls::self_signed(vec!["a".to_owned()]).unwrap()), None, ReviewLimits::default(), bounds).await;
    let request: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n";
    for (address, sent) in
        [(plain.address, &b""[..]), (plain.address, request), (tls.address, b""), (tls.address, b"\x16\x03\x01")]
    {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(sent).await.unwrap();
        let mut answer = Vec::new();
        let _ = timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await.expect("it is closed");
        assert_eq!(answer.starts_with(b"HTTP/1.1 200"), sent == request);
    }
}

#[tokio::test]
async fn a_slow_body_and_a_huge_one_are_not_waited_for_nor_kept() {
    let bounds = serve::Limits { lifetime: Duration::from_secs(2), ..serve::Limits::default() };
    let surface = surface(None, None, ReviewLimits::default(), bounds).await;
    for (head, status) in [
        ("POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n", "401"),
        ("GET /healthz HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nffffff\r\n", "200"),
    ] {
        let mut stream = TcpStream::connect(surface.address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        timeout(Duration::from_secs(2), stream.read_exact(&mut answer)).await.expect("before the body").unwrap();
        assert_eq!(String::from_utf8_lossy(&answer[9..]), status);
        // Whoever goes on sending is cut off, at latest at the end of the connection's life.
        let send = async { while stream.write_all(&[b'x'; 4096]).await.is_ok() {} };
        timeout(Duration::from_secs(10), send).await.expect("it is closed");
    }
}

#[tokio::test]
async fn requests_sent_ahead_are_all_answered_in_order() {
    let surface = surface(None, None, ReviewLimits::default(), serve::Limits::default()).await;
    let mut stream = TcpStream::connect(surface.address).await.unwrap();
    let requests = "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n".repeat(40)
        + "GET /elsewhere HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    stream.write_all(requests.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(Duration::from_secs(5), stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert_eq!((answer.matches("HTTP/1.1 200").count(), answer.matches("HTTP/1.1 404").count()), (40, 1));
    assert!(answer.rfind("HTTP/1.1 200") < answer.find("HTTP/1.1 404"));
}

/// Bad tokens from another address as fast as they are answered, until dropped.
fn flood(surface: &Surface, source: &'static str) -> tokio::task::JoinHandle<()> {
    let address = surface.address;
    tokio::spawn(async move {
        for i in 0..u64::MAX {
            let stream = connect_from(source, address).await;
            exchange(stream, "/metrics", Some(&format!("bad-{source}-{i}"))).await;
        }
    })
}

#[tokio::test]
async fn a_flood_of_bad_tokens_locks_out_neither_a_new_token_nor_one_that_was_good_before() {
    let limits = ReviewLimits { per_second: 4.0, allowed: Duration::from_millis(200), ..ReviewLimits::default() };
    let surface = surface(None, None, limits, serve::Limits::default()).await;
    let one = flood(&surface, "127.0.0.2");
    let deadline = Instant::now() + Duration::from_secs(10);
    while surface.server.requests(REVIEWS) < 4 {
        assert!(Instant::now() < deadline, "the flood does not reach the API server");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // A caller alone cannot use up what is there for all.
    assert_eq!(surface.get("/metrics", Some("prometheus-token")).await.0, 200, "a new token");
    let more: Vec<_> = ["127.0.0.3", "127.0.0.4", "127.0.0.5", "127.0.0.6"].map(|s| flood(&surface, s)).into();
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(2) {
        assert_eq!(surface.get("/metrics", Some("prometheus-token")).await.0, 200, "its permission ended meanwhile");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    one.abort();
    more.iter().for_each(tokio::task::JoinHandle::abort);
}
