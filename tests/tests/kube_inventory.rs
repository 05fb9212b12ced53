//! `--inventory kube` against an API server that replays recordings of a real one and misbehaves:
//! whatever happens on the way, what is known in the end is what the server holds in the end.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use guardrail_agent::policies;
use guardrail_graph::inventory::{Change, Inventory, Kind, read};
use guardrail_kube::{
    Api, Resource, Source,
    watch::{ListState, Options, Policies, Status, follow},
};
use guardrail_policy::model::NetworkPolicy;
use guardrail_tests::apiserver::{ApiServer, Fault, NoStreaming};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(30);
/// Ninety recorded seconds in less than one.
const SPEED: u32 = 120;

/// Everything an inventory holds, as sorted text. Of ReplicaSets that a Deployment owns only what
/// names the owner: the rest is not asked for.
fn described(inventory: &Inventory) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    all.extend(inventory.namespaces().map(|o| format!("{o:?}")));
    all.extend(inventory.nodes().map(|o| format!("{o:?}")));
    all.extend(inventory.pods().map(|o| format!("{o:?}")));
    all.extend(inventory.services().map(|o| format!("{o:?}")));
    all.extend(inventory.endpoint_slices().map(|o| format!("{o:?}")));
    all.extend(inventory.controllers().map(|o| match (o.kind.as_str(), &o.controller) {
        ("ReplicaSet", Some(owner)) => format!("ReplicaSet {} {} {} of {owner:?}", o.namespace, o.name, o.uid),
        _ => format!("{o:?}"),
    }));
    all
}

/// What the server holds, read without any watch.
fn truth(server: &ApiServer) -> BTreeSet<String> {
    described(&Inventory::from_objects(read::objects(&server.objects(), "the server").unwrap().objects))
}

/// A client of the server: the agent's watches, and an inventory fed by them.
struct Client {
    changes: mpsc::Receiver<Vec<Change>>,
    status: Arc<Status>,
    policies: Arc<Policies<NetworkPolicy>>,
    inventory: Inventory,
    /// Replacements of all pods that arrived.
    pod_replaces: usize,
    stop: CancellationToken,
    _dir: tempfile::TempDir,
    token: PathBuf,
}

/// For the tests about silence alone: a machine that is busy is silent as well, and no other test
/// may take that for a fault.
fn soon_given_up(options: &mut Options) {
    options.timing.stall = Duration::from_millis(800);
}

impl Client {
    async fn start(server: &ApiServer) -> Self {
        Self::with(server, |_| {}).await
    }

    async fn with(server: &ApiServer, change: impl FnOnce(&mut Options)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let token = dir.path().join("token");
        std::fs::write(&token, "first").unwrap();
        let kubeconfig = dir.path().join("config");
        std::fs::write(&kubeconfig, server.kubeconfig(Some(&token))).unwrap();
        let mut options = Options { page: 7, ..Options::default() };
        options.timing.watch = Duration::from_secs(2);
        options.timing.backoff = Duration::from_millis(20);
        options.timing.backoff_max = Duration::from_millis(400);
        options.timing.denied = Duration::from_millis(300);
        options.timing.patience = Duration::from_millis(600);
        change(&mut options);
        let api = Arc::new(Api::new(Source::file(kubeconfig), "guardrail-tests").await.unwrap());
        let status = Arc::new(Status::default());
        let stop = CancellationToken::new();
        let (sender, changes) = mpsc::channel(64);
        let policies = Arc::new(Policies::new(policies::read));
        tokio::spawn(follow(api, options, sender, Arc::clone(&status), Arc::clone(&policies), stop.clone()));
        Self { changes, status, policies, inventory: Inventory::default(), pod_replaces: 0, stop, _dir: dir, token }
    }

    fn take(&mut self, batch: Vec<Change>) {
        for change in batch {
            if matches!(&change, Change::Replace { kind: Kind::Pod, .. }) {
                self.pod_replaces += 1;
            }
            self.inventory.change(change);
        }
    }

    /// Takes changes until `done`, or panics at the deadline.
    async fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !done(self) {
            assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}; {:?}", self.status.report());
            if let Ok(Some(batch)) = tokio::time::timeout(Duration::from_millis(20), self.changes.recv()).await {
                self.take(batch);
            }
        }
    }

    /// Waits until everything was delivered, and compares.
    async fn agrees(&mut self, server: &ApiServer) {
        let truth = truth(server);
        self.until("the inventory equals the server's objects", |c| {
            server.all_delivered() && server.faults_used() && described(&c.inventory) == truth
        })
        .await;
        let policies: BTreeSet<String> =
            self.policies.all().iter().map(|p| format!("{}/{}", p.namespace, p.name)).collect();
        let expected: BTreeSet<String> = names(server, "NetworkPolicy");
        assert_eq!(policies, expected);
    }

    async fn synced(&mut self) {
        self.until("every first list is in", |c| c.is_synced()).await;
    }

    fn is_synced(&self) -> bool {
        self.status.subscribe().borrow().values().all(|s| *s == ListState::Synced)
    }

    /// Complete lists of pods that were taken.
    fn pod_lists(&self) -> u64 {
        self.status.report().lists.iter().filter(|(kind, _)| *kind == "pods").map(|(_, n)| n).sum()
    }

    fn failures(&self, reason: &str) -> u64 {
        self.status.report().failures.iter().filter(|(_, r, _)| *r == reason).map(|(.., n)| n).sum()
    }

    fn outcomes(&self, outcome: &str) -> u64 {
        self.status.report().events.iter().filter(|(_, o, _)| *o == outcome).map(|(.., n)| n).sum()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn names(server: &ApiServer, kind: &str) -> BTreeSet<String> {
    let list: serde_json::Value = serde_json::from_str(&server.objects()).unwrap();
    let items = list["items"].as_array().unwrap().iter().filter(|o| o["kind"] == kind);
    items
        .map(|o| {
            format!("{}/{}", o["metadata"]["namespace"].as_str().unwrap_or(""), o["metadata"]["name"].as_str().unwrap())
        })
        .collect()
}

/// Replays the recording in a thread of its own while the client follows.
async fn replayed(server: &Arc<ApiServer>, client: &mut Client) {
    let replay = tokio::task::spawn_blocking({
        let server = Arc::clone(server);
        move || server.replay(SPEED)
    });
    client.until("the recording is over", |_| replay.is_finished()).await;
    client.agrees(server).await;
}

fn server() -> Arc<ApiServer> {
    Arc::new(ApiServer::start().unwrap())
}

#[tokio::test]
async fn a_clean_replay_gives_what_the_server_holds() {
    let server = server();
    let mut client = Client::start(&server).await;
    client.synced().await;
    replayed(&server, &mut client).await;
    assert_eq!(client.pod_lists(), 1, "one list, then only changes");
    assert_eq!(client.failures("expired") + client.failures("malformed") + client.failures("stalled"), 0);
    assert!(client.outcomes("deleted") > 5);
    // The order of what happened matters as well as its end: the replay ended with other pods than
    // it began with.
    assert!(!client.inventory.pods().any(|p| p.name == "oneoff"));
}

const STREAMED_PODS: &str = "GET /api/v1/pods?watch=1&allowWatchBookmarks=true&timeoutSeconds=";

/// How often a list of pods was asked for as a stream.
fn streamed_lists(server: &ApiServer) -> usize {
    server.requests_with(&[STREAMED_PODS, "&sendInitialEvents=true"])
}

#[tokio::test]
async fn a_server_without_streaming_lists_is_read_page_by_page() {
    let server = server();
    server.manners(|m| m.stream_no_lists(NoStreaming::Status(422)));
    let mut client = Client::start(&server).await;
    client.synced().await;
    assert!(server.requests("GET /api/v1/pods?limit=7&continue=") >= 2, "pods come in pages");
    replayed(&server, &mut client).await;
}

#[tokio::test]
async fn whatever_keeps_a_list_from_being_streamed_it_is_read_page_by_page_and_followed() {
    let statuses = [400, 403, 404, 405, 410, 422, 429, 500, 501, 503, 504].map(NoStreaming::Status);
    let events = [400, 403, 410, 429, 500, 503, 504].map(NoStreaming::Event);
    for how in statuses.into_iter().chain(events).chain([NoStreaming::Cut]) {
        let server = server();
        server.manners(|m| m.stream_no_lists(how));
        let mut client = Client::start(&server).await;
        client.until(&format!("{how:?}: every list is in"), |c| c.is_synced()).await;
        assert_eq!(streamed_lists(&server), 1, "{how:?}: once is enough");
        server.replay(100_000);
        client.agrees(&server).await;
        assert_eq!(client.pod_lists(), 1, "{how:?}");
    }
}

#[tokio::test]
async fn each_resource_is_streamed_or_not_for_itself() {
    let server = server();
    server.manners(|m| m.no_streaming = [("pods".to_owned(), NoStreaming::Event(500))].into());
    let mut client = Client::start(&server).await;
    client.synced().await;
    assert!(server.requests("GET /api/v1/pods?limit=") > 0);
    for resource in Resource::ALL.into_iter().filter(|r| *r != Resource::Pods) {
        assert_eq!(server.requests(&format!("/{}?limit=", resource.as_str())), 0, "{}", resource.as_str());
    }
    client.agrees(&server).await;
}

#[tokio::test]
async fn after_a_while_lists_are_streamed_again() {
    let server = server();
    server.manners(|m| m.stream_no_lists(NoStreaming::Event(500)));
    let paged = Duration::from_secs(2);
    let mut client = Client::with(&server, |o| o.timing.paged = paged).await;
    client.synced().await;
    let over = Instant::now() + paged;
    assert!(server.requests("GET /api/v1/pods?limit=") > 0);
    server.manners(|m| m.no_streaming.clear());
    client.until("the time of pages is over", |_| Instant::now() > over).await;
    let before = streamed_lists(&server);
    server.fault("pods", Fault::Expired);
    server.drop_streams();
    client.until("the list came again", |c| c.pod_lists() == 2).await;
    assert_eq!(streamed_lists(&server), before + 1);
    client.agrees(&server).await;
}

#[tokio::test]
async fn a_list_whose_later_page_has_expired_begins_anew() {
    let server = server();
    server.manners(|m| m.stream_no_lists(NoStreaming::Event(500)));
    for _ in 0..3 {
        server.fault("pods", Fault::ExpiredPage);
    }
    let mut client = Client::start(&server).await;
    client.synced().await;
    assert!(server.requests("GET /api/v1/pods?limit=7&continue=") >= 4, "each began with its first page");
    assert_eq!((client.pod_lists(), client.failures("expired")), (1, 3));
    replayed(&server, &mut client).await;
}

#[tokio::test]
async fn an_expired_version_is_listed_again_at_once_however_long_other_failures_wait() {
    let server = server();
    let hour = Duration::from_secs(3600);
    let mut client = Client::with(&server, |o| (o.timing.backoff, o.timing.backoff_max) = (hour, hour)).await;
    client.synced().await;
    server.fault("pods", Fault::Expired);
    server.drop_streams();
    client.until("the list came again", |c| c.pod_lists() == 2).await;
    assert_eq!(client.failures("expired"), 1);
    client.agrees(&server).await;
}

#[tokio::test]
async fn an_expired_version_costs_one_replace_and_nothing_else() {
    let server = server();
    let mut client = Client::start(&server).await;
    client.synced().await;
    // Half of the story happens while nobody listens, and the server forgets it.
    server.fault("pods", Fault::Status { code: 503, retry_after: Some(1) });
    server.drop_streams();
    client.until("the watch broke", |_| server.faults_used()).await;
    server.replay_from(0, 45_000, 10_000);
    server.compact();
    client.until("the list came again", |c| c.pod_lists() == 2).await;
    assert!(client.failures("expired") >= 1);
    server.fault("pods", Fault::Expired);
    server.drop_streams();
    client.until("and again after a 410 inside a stream", |c| c.pod_lists() == 3).await;
    server.replay_from(45_000, u64::MAX, 10_000);
    client.agrees(&server).await;
    assert_eq!(client.pod_replaces, 1, "a list that comes again says only what differs");
}

#[tokio::test]
async fn a_refused_token_is_read_again_from_its_file() {
    let server = server();
    server.manners(|m| m.tokens = Some(["first".to_owned()].into()));
    let mut client = Client::start(&server).await;
    client.synced().await;
    server.manners(|m| m.tokens = Some(["second".to_owned()].into()));
    server.drop_streams();
    client.until("the old token is refused", |c| c.failures("unauthorized") > 0).await;
    std::fs::write(&client.token, "second").unwrap();
    replayed(&server, &mut client).await;
}

#[tokio::test]
async fn a_missing_permission_is_named_and_the_rest_goes_on() {
    let server = server();
    for verb in ["list", "watch"] {
        server.manners(|m| assert!(m.denied.insert((verb.to_owned(), "services".to_owned()))));
    }
    let mut client = Client::start(&server).await;
    client
        .until("nothing is pending", |c| c.status.subscribe().borrow().values().all(|s| *s != ListState::Pending))
        .await;
    let lists = client.status.subscribe().borrow().clone();
    match &lists[&Resource::Services] {
        ListState::Denied(reason) => {
            assert!(reason.contains("services: the service account may not list them"), "{reason}");
            assert!(reason.contains("system:serviceaccount:guardrail:guardrail-agent"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(lists[&Resource::Pods], ListState::Synced);
    // Somebody grants it: no restart.
    server.manners(|m| m.denied.clear());
    client.synced().await;
    replayed(&server, &mut client).await;
}

#[tokio::test]
async fn a_busy_server_is_left_alone_as_long_as_it_asks() {
    let server = server();
    server.fault("pods", Fault::Status { code: 429, retry_after: Some(1) });
    let began = Instant::now();
    let mut client = Client::start(&server).await;
    client.synced().await;
    assert!(began.elapsed() >= Duration::from_secs(1), "it came back after {:?}", began.elapsed());
    assert_eq!(client.failures("throttled"), 1);
    replayed(&server, &mut client).await;
}

#[tokio::test]
async fn errors_and_lost_connections_are_tried_again() {
    let server = server();
    for resource in ["pods", "services", "replicasets"] {
        for code in [500, 503, 504] {
            server.fault(resource, Fault::Status { code, retry_after: None });
        }
        server.fault(resource, Fault::Disconnect);
    }
    let mut client = Client::start(&server).await;
    client.synced().await;
    assert_eq!(client.failures("server_error"), 9);
    assert_eq!(client.failures("transport"), 3);
    replayed(&server, &mut client).await;
}

#[tokio::test]
async fn a_stream_cut_inside_an_object_goes_on_where_it_stood() {
    let server = server();
    let mut client = Client::start(&server).await;
    client.synced().await;
    for (resource, after) in [("pods", 3), ("pods", 11), ("endpointslices", 1), ("replicasets", 4)] {
        server.fault(resource, Fault::CutMidObject { after });
    }
    server.drop_streams();
    replayed(&server, &mut client).await;
    assert_eq!(client.pod_lists(), 1, "a cut costs no list");
    assert_eq!(client.failures("expired"), 0);
}

#[tokio::test]
async fn a_first_list_cut_inside_an_object_is_not_taken_for_the_whole() {
    let server = server();
    server.fault("pods", Fault::CutMidObject { after: 5 });
    let mut client = Client::start(&server).await;
    client.synced().await;
    assert_eq!(client.pod_lists(), 1, "the part was not taken");
    replayed(&server, &mut client).await;
}

#[tokio::test]
async fn a_silent_stream_is_given_up() {
    let server = server();
    let mut client = Client::with(&server, soon_given_up).await;
    client.synced().await;
    server.fault("pods", Fault::Stall { after: 2 });
    server.fault("endpointslices", Fault::Stall { after: 0 });
    server.drop_streams();
    replayed(&server, &mut client).await;
    assert!(client.failures("stalled") >= 2, "{:?}", client.status.report().failures);
}

#[tokio::test]
async fn a_first_list_that_never_ends_is_asked_for_in_pages() {
    let server = server();
    server.fault("pods", Fault::Stall { after: 4 });
    let mut client = Client::with(&server, soon_given_up).await;
    client.synced().await;
    assert!(server.requests("GET /api/v1/pods?limit=7") > 0);
    replayed(&server, &mut client).await;
}

#[tokio::test]
async fn what_is_no_event_costs_a_list_not_the_agent() {
    let server = server();
    let mut client = Client::start(&server).await;
    client.synced().await;
    server.fault("pods", Fault::Garbage { after: 6 });
    server.drop_streams();
    replayed(&server, &mut client).await;
    assert!(client.failures("malformed") >= 1);
    assert!(client.pod_lists() >= 2);
}

#[tokio::test]
async fn repeated_events_change_nothing() {
    let server = server();
    server.manners(|m| m.duplicates = true);
    let mut client = Client::start(&server).await;
    client.synced().await;
    replayed(&server, &mut client).await;
    assert!(client.outcomes("unchanged") + client.outcomes("stale") > 100, "{:?}", client.status.report().events);
}

#[tokio::test]
async fn swapped_events_end_in_the_same_place() {
    let server = server();
    server.manners(|m| m.reorder = true);
    let mut client = Client::start(&server).await;
    client.synced().await;
    // In bursts, so that there are neighbours to swap.
    for from in (0..90_000).step_by(9_000) {
        server.replay_from(from, from + 9_000, 1_000_000);
        client.until("the burst was sent", |_| server.all_delivered()).await;
    }
    client.agrees(&server).await;
    assert!(client.outcomes("stale") > 0, "something did arrive late: {:?}", client.status.report().events);
}

#[tokio::test]
async fn objects_that_make_no_sense_are_counted_and_skipped_in_lists_and_in_watches() {
    let server = server();
    let mut client = Client::start(&server).await;
    client.agrees(&server).await;
    let good = described(&client.inventory);
    let bad = |name: &str| json!({"metadata": {"name": name, "namespace": "storefront", "uid": name}, "status": {"podIP": "not an address"}});
    server.put("pods", bad("bad-in-the-watch"));
    client.until("the bad pod was counted", |c| c.outcomes("invalid") == 1).await;
    // One that was good and is not any more stays as it was known, in a watch and in a list.
    let victim = client.inventory.pods().find(|p| p.namespace == "storefront").unwrap().name.clone();
    server.put("pods", bad(&victim));
    client.until("the second bad pod was counted", |c| c.outcomes("invalid") == 2).await;
    server.fault("pods", Fault::Expired);
    server.drop_streams();
    client.until("the list came again with both", |c| c.outcomes("invalid") == 4).await;
    client.until("and is followed", |_| server.all_delivered()).await;
    client.until("the rest is as it was", |c| described(&c.inventory) == good).await;
    // A good version of it is news again.
    server.put("pods", json!({"metadata": {"name": victim, "namespace": "storefront", "uid": "new"}, "status": {"podIP": "10.244.9.9"}}));
    client
        .until("the good version arrived", |c| c.inventory.pod("storefront", &victim).is_some_and(|p| p.uid == "new"))
        .await;
}

#[tokio::test]
async fn a_server_that_is_away_leaves_what_is_known_and_comes_back_without_a_restart() {
    let server = server();
    let mut client = Client::start(&server).await;
    client.agrees(&server).await;
    let before = described(&client.inventory);
    let url = server.url();
    drop(server);
    client.until("the watches failed", |c| c.failures("transport") > 24).await;
    assert_eq!(described(&client.inventory), before);
    assert!(client.status.subscribe().borrow().values().all(|s| *s == ListState::Synced), "readiness does not flap");
    let listener = std::net::TcpListener::bind(url.trim_start_matches("http://")).unwrap();
    let server = Arc::new(ApiServer::on(listener).unwrap());
    replayed(&server, &mut client).await;
}

#[tokio::test]
async fn a_server_that_never_answers_does_not_hold_up_readiness_for_ever() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = Arc::new(ApiServer::on(listener).unwrap());
    for resource in Resource::ALL {
        for _ in 0..400 {
            server.fault(resource.as_str(), Fault::Disconnect);
        }
    }
    let mut client = Client::start(&server).await;
    client
        .until("every list was given up", |c| {
            c.status
                .subscribe()
                .borrow()
                .values()
                .all(|s| matches!(s, ListState::GivenUp(reason) if reason.contains("no connection")))
        })
        .await;
    drop(server);
    let server = Arc::new(ApiServer::on(std::net::TcpListener::bind(address).unwrap()).unwrap());
    client.synced().await;
    client.agrees(&server).await;
}

#[tokio::test]
async fn replica_sets_of_deployments_are_read_as_metadata_and_others_whole() {
    let server = server();
    let mut client = Client::start(&server).await;
    client.synced().await;
    client.agrees(&server).await;
    let lists = |server: &ApiServer| server.requests("replicasets?watch=1&allowWatchBookmarks=true&timeoutSeconds=");
    let before = lists(&server);
    server.put(
        "replicasets",
        json!({"metadata": {"name": "bare", "namespace": "storefront", "uid": "bare"},
               "spec": {"selector": {"matchLabels": {"app": "bare"}}, "template": {"metadata": {"labels": {"app": "bare"}}}}}),
    );
    client.agrees(&server).await;
    let bare = client.inventory.controller("storefront", "ReplicaSet", "bare").unwrap();
    assert!(bare.selector.is_some(), "its own selector was read");
    assert!(lists(&server) > before);
}

#[tokio::test]
async fn scope_node_asks_for_the_pods_of_one_node_only() {
    let server = server();
    let mut client = Client::with(&server, |o| o.pods_of_node = Some("node-a".to_owned())).await;
    client.synced().await;
    server.replay(10_000);
    let truth = Inventory::from_objects(read::objects(&server.objects(), "the server").unwrap().objects);
    let own: BTreeSet<String> =
        truth.pods().filter(|p| p.node.as_deref() == Some("node-a")).map(|p| format!("{p:?}")).collect();
    assert!(!own.is_empty() && own.len() < truth.pods().count());
    client
        .until("only the pods of node-a are known", |c| {
            server.all_delivered() && c.inventory.pods().map(|p| format!("{p:?}")).collect::<BTreeSet<_>>() == own
        })
        .await;
    assert_eq!(server.requests("/api/v1/pods?"), server.requests("fieldSelector=spec.nodeName%3Dnode-a"));
}
