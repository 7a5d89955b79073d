use std::collections::BTreeMap;
use std::future::pending;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ebbtide_authority::Authority;
use ebbtide_contract::demand::{Down, Fact, Group, Outcome, PROTOCOL, Up};
use ebbtide_contract::identity::{Identity, Role};
use ebbtide_contract::tls::{Credentials, any_name};
use jiff::Timestamp;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{
    CLUSTER_CONNECTIONS_MAX, HANDSHAKE_MAX, KEPT, PENALIZED_MAX, Peer, Refused, SILENCE_MAX,
    STRANGERS_MAX, Schedulers, serve,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// An operator's port, and what it tells.
struct Operator {
    authority: Authority,
    schedulers: Schedulers,
    address: String,
    news: mpsc::UnboundedReceiver<String>,
}

type Connection = BufReader<TlsStream<TcpStream>>;

impl Operator {
    async fn start() -> Self {
        let authority = Authority::create(Timestamp::now()).unwrap();
        let schedulers = Schedulers::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let own = credentials(&authority, &Identity::Operator);
        let (sender, config) = watch::channel(Arc::new(own.accept_schedulers().unwrap()));
        let (tell, news) = mpsc::unbounded_channel();
        let news_of = move |uid: &str| drop(tell.send(uid.to_owned()));
        tokio::spawn(serve(listener, config, schedulers.clone(), news_of));
        tokio::spawn(async move {
            pending::<()>().await;
            drop(sender);
        });
        Self { authority, schedulers, address, news }
    }

    async fn connect(&self, uid: &str, role: Role) -> Connection {
        let own = credentials(&self.authority, &Identity::member(uid, role));
        let config = own.dial(Identity::Operator).unwrap();
        let stream = TcpStream::connect(&self.address).await.unwrap();
        let connector = TlsConnector::from(Arc::new(config));
        BufReader::new(connector.connect(any_name(), stream).await.unwrap())
    }

    /// A scheduler with a worker, after its first snapshot was heard.
    async fn scheduler(&mut self, uid: &str, epoch: u64) -> Connection {
        let mut connection = self.connect(uid, Role::Scheduler).await;
        let worker = Fact::Worker { name: "w".to_owned(), held_bytes: 0, assigned: 0 };
        for up in [
            Up::Hello { protocol: PROTOCOL, epoch },
            Up::Begin { sequence: 1 },
            Up::Fact { sequence: 2, fact: Fact::Jobs { ever: 0 } },
            Up::Fact { sequence: 3, fact: worker },
            Up::End { sequence: 4 },
        ] {
            say(&mut connection, &up).await;
        }
        self.hear(uid).await;
        connection
    }

    /// Waits until so many refusals are counted for this reason, and sees that there are no others.
    async fn counts(&self, reason: &'static str, count: u64) {
        let all = async {
            while self.schedulers.refused().get(reason) != Some(&count) {
                tokio::task::yield_now().await;
            }
        };
        let counted = timeout(PATIENCE, all).await;
        let refused = self.schedulers.refused();
        assert!(counted.is_ok() && refused.len() == 1, "{refused:?}");
    }

    /// Sees that something is refused when this time is over, and not before.
    async fn is_refused_after(&self, limit: Duration, reason: &'static str) {
        let moment = Duration::from_secs(1);
        sleep(limit.saturating_sub(moment)).await;
        assert_eq!(self.schedulers.refused(), BTreeMap::new());
        sleep(2 * moment).await;
        assert_eq!(self.schedulers.refused(), BTreeMap::from([(reason, 1)]));
    }

    /// Waits until somebody has so many connections.
    async fn has(&self, peer: &Peer, count: usize) {
        let all = async {
            while self.schedulers.lock().open.get(peer).copied().unwrap_or_default() != count {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, all).await.unwrap();
    }

    async fn hear(&mut self, uid: &str) {
        let heard = timeout(PATIENCE, self.news.recv()).await.unwrap();
        assert_eq!(heard.as_deref(), Some(uid));
    }
}

fn credentials(authority: &Authority, identity: &Identity) -> Credentials {
    authority.proof(identity, Timestamp::now()).unwrap()
}

async fn say(connection: &mut Connection, up: &Up) {
    let mut line = serde_json::to_vec(up).unwrap();
    line.push(b'\n');
    connection.write_all(&line).await.unwrap();
}

/// Whether the other side closes, with or without a word.
async fn is_closed(connection: &mut Connection) -> bool {
    let mut rest = Vec::new();
    let read = timeout(PATIENCE, connection.read_to_end(&mut rest)).await.unwrap();
    read.is_err() || rest.is_empty()
}

#[tokio::test]
async fn only_schedulers_are_heard() {
    let operator = Operator::start().await;
    for role in [Role::Worker, Role::Client] {
        let mut connection = operator.connect("a", role).await;
        assert!(is_closed(&mut connection).await, "{role:?}");
    }
    operator.counts("tls", 2).await;
}

#[tokio::test]
async fn a_cluster_has_a_few_connections_and_others_have_theirs() {
    let mut operator = Operator::start().await;
    let mut mute = Vec::new();
    for _ in 0..CLUSTER_CONNECTIONS_MAX {
        let mut connection = operator.connect("a", Role::Scheduler).await;
        say(&mut connection, &Up::Hello { protocol: PROTOCOL, epoch: 1 }).await;
        mute.push(connection);
    }
    operator.has(&Peer::Cluster("a".to_owned()), CLUSTER_CONNECTIONS_MAX).await;
    let mut one_more = operator.connect("a", Role::Scheduler).await;
    assert!(is_closed(&mut one_more).await);
    operator.counts("connections", 1).await;
    operator.scheduler("b", 1).await;
    assert!(operator.schedulers.demand("b").is_some());
}

#[tokio::test]
async fn a_thousand_mute_connections_of_one_address_keep_nobody_out() {
    let mut operator = Operator::start().await;
    let address: SocketAddr = operator.address.parse().unwrap();
    let mut mute = Vec::new();
    for _ in 0..1000 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        mute.push(socket.connect(address).await.unwrap());
    }
    operator.has(&Peer::Address(IpAddr::from([127, 0, 0, 2])), STRANGERS_MAX).await;
    operator.scheduler("a", 1).await;
    assert!(operator.schedulers.demand("a").is_some());
    // The rest is counted as refused, or as what came too soon after that.
    let all = async {
        while operator.schedulers.refused().values().sum::<u64>() < 1000 - STRANGERS_MAX as u64 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, all).await.unwrap();
    drop(mute);
    operator.has(&Peer::Address(IpAddr::from([127, 0, 0, 2])), 0).await;
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_before_it_proves_itself_is_let_go() {
    let operator = Operator::start().await;
    let _mute = TcpStream::connect(&operator.address).await.unwrap();
    operator.is_refused_after(HANDSHAKE_MAX, "tls").await;
}

#[tokio::test]
async fn who_says_nothing_first_or_any_more_is_let_go() {
    let operator = Operator::start().await;
    let _mute = operator.connect("a", Role::Scheduler).await;
    operator.has(&Peer::Cluster("a".to_owned()), 1).await;
    // Who has proved itself is no stranger any more.
    operator.has(&Peer::Address(IpAddr::from([127, 0, 0, 1])), 0).await;
    tokio::time::pause();
    operator.is_refused_after(HANDSHAKE_MAX, "silence").await;
    tokio::time::resume();
    let operator = &mut Operator::start().await;
    let _silent = operator.scheduler("b", 1).await;
    tokio::time::pause();
    operator.is_refused_after(SILENCE_MAX, "silence").await;
    assert_eq!(operator.schedulers.demand("b"), None);
}

#[tokio::test]
async fn a_later_life_of_a_scheduler_takes_over_and_an_earlier_one_does_not() {
    let mut operator = Operator::start().await;
    let _present = operator.scheduler("a", 5).await;
    let mut earlier = operator.connect("a", Role::Scheduler).await;
    say(&mut earlier, &Up::Hello { protocol: PROTOCOL, epoch: 4 }).await;
    assert!(is_closed(&mut earlier).await);
    assert_eq!(operator.schedulers.demand("a").map(|it| it.epoch), Some(5));
    let _later = operator.scheduler("a", 6).await;
    assert_eq!(operator.schedulers.demand("a").map(|it| it.epoch), Some(6));
}

#[tokio::test]
async fn what_no_scheduler_says_ends_its_connection_and_its_demand() {
    let mut operator = Operator::start().await;
    let long = format!("{{\"type\":\"begin\",\"sequence\":{}1}}\n", " ".repeat(70_000));
    let infinite = "{\"type\":\"fact\",\"sequence\":5,\"fact\":{\"fact\":\"queue\",\"fits\":[],\
                    \"tasks\":1,\"coreSeconds\":1e999,\"running\":0}}\n";
    for line in ["garbage\n", &long, infinite, "{\"type\":\"fact\"}\n"] {
        let mut connection = operator.scheduler("a", 1).await;
        connection.write_all(line.as_bytes()).await.unwrap();
        assert!(is_closed(&mut connection).await, "{line:.40}");
        operator.hear("a").await;
        assert_eq!(operator.schedulers.demand("a"), None);
    }
    operator.counts("line", 4).await;
}

#[tokio::test]
async fn a_line_that_is_cut_off_is_none() {
    let mut operator = Operator::start().await;
    let mut connection = operator.scheduler("a", 1).await;
    connection
        .write_all(b"{\"type\":\"retired\",\"worker\":\"w\",\"outcome\":\"kept\"}")
        .await
        .unwrap();
    connection.shutdown().await.unwrap();
    operator.hear("a").await;
    assert_eq!(operator.schedulers.demand("a"), None);
    operator.counts("line", 1).await;
}

#[tokio::test]
async fn a_worker_is_asked_to_retire_once_and_its_answer_is_kept() {
    let mut operator = Operator::start().await;
    let mut connection = operator.scheduler("a", 1).await;
    operator.schedulers.retire("a", &["w".to_owned()], 7);
    let retire = Down::Retire { workers: vec!["w".to_owned()], deadline_seconds: 7 };
    assert_eq!(order(&mut connection).await, retire);
    assert!(operator.schedulers.demand("a").unwrap().asked.contains("w"));
    let outcome = Outcome::Released;
    say(&mut connection, &Up::Retired { worker: "w".to_owned(), outcome }).await;
    operator.hear("a").await;
    let demand = operator.schedulers.demand("a").unwrap();
    assert!(demand.asked.is_empty());
    assert_eq!(demand.retired.get("w"), Some(&outcome));
}

#[tokio::test]
async fn work_that_came_and_went_between_two_lines_is_known() {
    let mut operator = Operator::start().await;
    let mut connection = operator.scheduler("a", 1).await;
    assert_eq!(operator.schedulers.busy_ago("a"), None);
    say(&mut connection, &Up::Fact { sequence: 5, fact: Fact::Jobs { ever: 1 } }).await;
    operator.hear("a").await;
    assert!(operator.schedulers.busy_ago("a").is_some());
}

async fn order(connection: &mut Connection) -> Down {
    let mut line = String::new();
    timeout(PATIENCE, connection.read_line(&mut line)).await.unwrap().unwrap();
    serde_json::from_str(&line).unwrap()
}

#[tokio::test]
async fn each_connection_is_told_of_the_worker_groups_once_and_of_every_change() {
    let mut operator = Operator::start().await;
    let group = |name: &str| Group {
        name: name.to_owned(),
        memory_bytes: 1,
        resources: BTreeMap::from([("nvidia.com/gpu".to_owned(), 2)]),
        target_seconds: 3,
    };
    let mut before = None;
    for epoch in 1..=2 {
        let mut connection = operator.scheduler("a", epoch).await;
        for groups in [vec![group("w")], vec![group("w"), group("v")]] {
            operator.schedulers.tell_groups("a", &groups);
            operator.schedulers.tell_groups("a", &groups);
            assert_eq!(order(&mut connection).await, Down::Groups { groups });
        }
        operator.schedulers.retire("a", &["w".to_owned()], 7);
        let next = order(&mut connection).await;
        assert!(matches!(next, Down::Retire { .. }), "{next:?} was said twice");
        before = Some(connection);
    }
    drop(before);
}

#[tokio::test(start_paused = true)]
async fn that_a_worker_was_kept_counts_for_a_while() {
    let schedulers = Schedulers::default();
    let conversation = schedulers.open("a", PROTOCOL, 1).unwrap();
    let worker = Fact::Worker { name: "w".to_owned(), held_bytes: 0, assigned: 0 };
    let outcome = Outcome::Kept;
    for up in [
        Up::Begin { sequence: 1 },
        Up::Fact { sequence: 2, fact: worker },
        Up::End { sequence: 3 },
        Up::Retired { worker: "w".to_owned(), outcome },
    ] {
        conversation.hear(up).unwrap();
    }
    let answer = || schedulers.demand("a").unwrap().retired.get("w").copied();
    assert_eq!(answer(), Some(outcome));
    tokio::time::advance(KEPT).await;
    assert_eq!(answer(), None);
}

#[tokio::test(start_paused = true)]
async fn who_is_connected_and_says_nothing_whole_is_as_silent_as_before() {
    let schedulers = Schedulers::default();
    sleep(Duration::from_secs(5)).await;
    let conversation = schedulers.open("a", PROTOCOL, 1).unwrap();
    assert_eq!(schedulers.silent_for("a"), Duration::from_secs(5));
    drop(conversation);
    assert_eq!(schedulers.silent_for("a"), Duration::from_secs(5));
    let conversation = schedulers.open("a", PROTOCOL, 2).unwrap();
    conversation.hear(Up::Begin { sequence: 0 }).unwrap();
    conversation.hear(Up::End { sequence: 1 }).unwrap();
    assert_eq!(schedulers.silent_for("a"), Duration::ZERO);
    drop(conversation);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(schedulers.silent_for("a"), Duration::from_secs(2));
}

#[tokio::test(start_paused = true)]
async fn who_was_refused_waits_and_nobody_else_does() {
    let schedulers = Schedulers::default();
    let address = |last| IpAddr::from([10, 0, 0, last]);
    let refused = Refused { reason: "tls", message: String::new(), cluster_uid: None };
    (0..3).for_each(|_| schedulers.refuse(address(1), &refused));
    let wait = async |peer| {
        let begin = Instant::now();
        assert!(schedulers.bear(peer).await);
        begin.elapsed()
    };
    assert_eq!(wait(Peer::Address(address(1))).await, Duration::from_millis(400));
    assert_eq!(wait(Peer::Address(address(2))).await, Duration::ZERO);
    let of_cluster = Refused { cluster_uid: Some("a".to_owned()), ..refused };
    schedulers.refuse(address(2), &of_cluster);
    assert_eq!(wait(Peer::Address(address(2))).await, Duration::ZERO);
    assert!(!wait(Peer::Cluster("a".to_owned())).await.is_zero());
    let many = (0..PENALIZED_MAX).map(|_| {
        let schedulers = schedulers.clone();
        tokio::spawn(async move { schedulers.bear(Peer::Address(address(1))).await })
    });
    let many: Vec<_> = many.collect();
    tokio::task::yield_now().await;
    assert!(!schedulers.bear(Peer::Address(address(1))).await, "as many as may wait");
    assert_eq!(schedulers.refused().get("penalty"), Some(&1));
    for one in many {
        assert!(one.await.unwrap());
    }
    schedulers.absolve(address(1));
    assert_eq!(wait(Peer::Address(address(1))).await, Duration::ZERO);
}
