//! The service manager: it is told when the gate is ready and when it drains, and it may hold the
//! sockets. `systemd-socket-activate` passes them as systemd itself does.

use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use tikigate::net::ListenAddress;

use crate::commands::{Running, ask, command, get, run, setup, signed};
use crate::support::backend::{Answer, Backend};
use crate::support::gate::{refund, usual};
use crate::support::gate_process::{GateProcess, Setup};
use crate::support::in_time;
use crate::support::raw::{RawClient, exchange, exchange_if_there};

/// Nobody is called in some of these tests.
const NOBODY: &str = "http://127.0.0.1:9";

/// What a service manager hears of a service.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn listening_in(setup: &Setup) -> Self {
        let path = setup.directory().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        Self { socket, path }
    }

    /// The next message, as its lines.
    #[track_caller]
    fn hears(&self) -> Vec<String> {
        let mut bytes = [0; 4096];
        let length = self.socket.recv(&mut bytes).unwrap();
        let text = std::str::from_utf8(&bytes[..length]).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    /// Whether it heard nothing more.
    fn hears_nothing(&self) -> bool {
        self.socket.set_nonblocking(true).unwrap();
        let nothing = self.socket.recv(&mut [0; 64]).is_err();
        self.socket.set_nonblocking(false).unwrap();
        nothing
    }
}

fn started(manager: impl FnOnce(&Setup) -> Manager) -> (GateProcess, Manager) {
    let setup = setup(&usual(NOBODY));
    let manager = manager(&setup);
    let path = manager.path.display().to_string();
    (setup.environment("NOTIFY_SOCKET", &path).start(), manager)
}

#[test]
fn a_service_manager_hears_when_the_gate_is_ready_and_when_a_signal_ends_it() {
    let (mut gate, manager) = started(Manager::listening_in);
    let address = gate.address();
    assert_eq!(
        manager.hears(),
        ["READY=1", &format!("STATUS=serving on {address}")]
    );
    assert!(manager.hears_nothing());
    assert_eq!(gate.terminate().code(), Some(0));
    assert_eq!(manager.hears(), ["STOPPING=1", "STATUS=draining"]);
    assert!(manager.hears_nothing());
}

#[test]
fn a_service_manager_hears_of_a_drain_that_a_command_began() {
    let (mut gate, manager) = started(Manager::listening_in);
    assert_eq!(manager.hears()[0], "READY=1");
    ask(&gate, &["drain"]).worked();
    assert_eq!(manager.hears()[0], "STOPPING=1");
    assert_eq!(gate.wait(Duration::from_secs(20)).code(), Some(0));
}

#[test]
fn one_that_is_not_there_is_no_reason_not_to_serve() {
    let setup = setup(&usual(NOBODY)).environment("NOTIFY_SOCKET", "/nonexistent/notify");
    let mut gate = setup.start();
    gate.wait_for_line(|line| line.contains("the service manager could not be told"));
    assert_eq!(gate.terminate().code(), Some(0));
}

#[test]
fn a_gate_that_cannot_start_never_says_that_it_is_ready() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let setup = setup(&usual(NOBODY));
    let manager = Manager::listening_in(&setup);
    let mut serve = command(&setup, &["serve"]);
    serve.env("NOTIFY_SOCKET", &manager.path).env(
        "TIKIGATE__SERVER__LISTEN",
        taken.local_addr().unwrap().to_string(),
    );
    run(&mut serve).failed(1);
    assert!(manager.hears_nothing());
}

/// An address that nobody listens on: no other test uses this one of the loopback's.
fn free_address() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.6.6:0").unwrap();
    listener.local_addr().unwrap()
}

/// `tikigate serve`, started by the first connection to one of these sockets, which it is passed.
fn activated(setup: &Setup, sockets: &[String]) -> Command {
    let mut activate = Command::new("systemd-socket-activate");
    for socket in sockets {
        activate.args(["--listen", socket]);
    }
    let serve = command(setup, &["serve"]);
    for (name, value) in serve.get_envs() {
        match value {
            // It hands on what it is told to, and nothing else of its environment.
            Some(value) => {
                let both = format!("{}={}", name.display(), value.display());
                activate.args(["--setenv", &both]);
            }
            None => {
                activate.env_remove(name);
            }
        }
    }
    activate.arg(serve.get_program()).args(serve.get_args());
    activate
}

/// Connects as soon as somebody listens.
async fn connect(address: &ListenAddress) -> RawClient {
    let ListenAddress::Tcp(tcp) = address else {
        panic!("a TCP address");
    };
    in_time("a listener", async {
        while tokio::net::TcpStream::connect(tcp).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    RawClient::connect(address).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_that_is_passed_is_served_with_what_waits_in_it() {
    let backend = Backend::start(|_| Answer::success().into()).await;
    let (server, admin) = (free_address(), free_address());
    let setup = setup(&usual(&backend.url()))
        .environment("TIKIGATE__SERVER__LISTEN", &server.to_string())
        .environment("TIKIGATE__ADMIN__LISTEN", &admin.to_string());
    // In another order than the configuration's: each finds its own by its address.
    let mut command = activated(&setup, &[admin.to_string(), server.to_string()]);
    let mut gate = Running::start(&mut command, &setup);

    let server = ListenAddress::Tcp(server);
    // Before the gate runs: this connection is what starts it.
    let mut caller = connect(&server).await;
    caller
        .send(signed("/tiki/refund", &refund("r-1", "1")).to_bytes())
        .await;
    assert_eq!(caller.read_answer().await.status, 200);
    drop(caller);
    for number in 2..20 {
        let call = signed("/tiki/refund", &refund(&format!("r-{number}"), "1"));
        assert_eq!(exchange(&server, call.to_bytes()).await.status, 200);
    }
    assert_eq!(get(admin, "/readyz").await.status, 200);
    assert_eq!(backend.requests().len(), 19);
    assert_eq!(gate.terminate().code(), Some(0), "{}", gate.output());
}

/// What an upgrade on one machine needs: the port stays open while there is no gate.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_wait_in_the_socket_while_the_gate_is_started_anew() {
    let backend = Backend::start(|_| Answer::success().into()).await;
    // As systemd: the socket is held by a process that outlives the gates.
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = held.local_addr().unwrap();
    let setup =
        setup(&usual(&backend.url())).environment("TIKIGATE__SERVER__LISTEN", &address.to_string());
    let server = ListenAddress::Tcp(address);
    for life in 0..3 {
        // There is no gate now: the call waits.
        let mut waiting = RawClient::connect(&server).await;
        let body = refund(&format!("r-{life}"), "1");
        waiting.send(signed("/tiki/refund", &body).to_bytes()).await;
        let log = setup.directory().join("output");
        let mut gate = Running::start_as_it_is(&mut holding(&held, &setup, &log), log);
        assert_eq!(waiting.read_answer().await.status, 200, "{life}");
        drop(waiting);
        assert_eq!(gate.terminate().code(), Some(0), "{}", gate.output());
    }
    assert_eq!(backend.requests().len(), 3);
}

/// Callers that come all the time, each on a connection of its own, while gates come and go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_behind_a_held_socket_refuse_nobody() {
    let backend = Backend::start(|_| Answer::success().into()).await;
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = held.local_addr().unwrap();
    let setup =
        setup(&usual(&backend.url())).environment("TIKIGATE__SERVER__LISTEN", &address.to_string());
    let over = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicUsize::new(0));
    let mut callers = tokio::task::JoinSet::new();
    for place in 0..4 {
        let (over, answered) = (Arc::clone(&over), Arc::clone(&answered));
        callers.spawn(async move {
            let server = ListenAddress::Tcp(address);
            for number in 0.. {
                if over.load(Ordering::SeqCst) {
                    return;
                }
                let call = signed("/tiki/refund", &refund(&format!("r-{place}-{number}"), "1"));
                // A connection that the gate has taken and not read when it ends is closed: once more.
                let within = Duration::from_secs(20);
                if let Some(answer) = exchange_if_there(&server, call.to_bytes(), within).await {
                    assert_eq!(answer.status, 200, "{}", answer.text());
                    answered.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
    }
    for life in 0..6 {
        let log = setup.directory().join("output");
        let mut gate = Running::start_as_it_is(&mut holding(&held, &setup, &log), log);
        let enough = answered.load(Ordering::SeqCst) + 100;
        in_time("calls through this gate", async {
            while answered.load(Ordering::SeqCst) < enough {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
        assert_eq!(
            gate.terminate().code(),
            Some(0),
            "{life}: {}",
            gate.output()
        );
    }
    over.store(true, Ordering::SeqCst);
    // Nobody will answer those that wait.
    drop(held);
    callers.abort_all();
    while let Some(ended) = callers.join_next().await {
        assert!(
            !ended.is_err_and(|error| error.is_panic()),
            "a call was refused"
        );
    }
}

/// `tikigate serve` with this socket as its first passed one.
fn holding(socket: &std::net::TcpListener, setup: &Setup, log: &Path) -> Command {
    let serve = command(setup, &["serve"]);
    let mut shell = Command::new("sh");
    // A shell keeps its process id over `exec`, and can put the socket where the gate looks for it.
    shell
        .args([
            "-c",
            r#"LISTEN_FDS=1 LISTEN_PID=$$ exec "$@" 3<&0 </dev/null"#,
            "sh",
        ])
        .arg(serve.get_program())
        .args(serve.get_args());
    for (name, value) in serve.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    let output = File::options().create(true).append(true).open(log).unwrap();
    shell
        .stdin(OwnedFd::from(socket.try_clone().unwrap()))
        .stdout(output.try_clone().unwrap())
        .stderr(output);
    shell
}

/// What a gate says that does not start.
#[track_caller]
fn refusal(command: &mut Command, setup: &Setup) -> String {
    let log = setup.directory().join("output");
    let mut gate = Running::start_as_it_is(command, log);
    assert_eq!(gate.wait().code(), Some(1), "{}", gate.output());
    gate.output()
}

#[test]
fn a_socket_that_no_listener_asks_for_is_refused_by_its_address() {
    let setup = setup(&usual(NOBODY));
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = held.local_addr().unwrap();
    let told = refusal(
        &mut holding(&held, &setup, &setup.directory().join("output")),
        &setup,
    );
    let sentence = format!("systemd passes a socket on {address}, where no listener");
    for words in [sentence.as_str(), "server.listen"] {
        assert!(told.contains(words), "{told}");
    }
}

/// `ListenStream=8080` is `[::]:8080`: the likeliest mistake.
#[test]
fn a_socket_on_a_like_address_is_told_from_another_process() {
    let held = std::net::TcpListener::bind("[::]:0").unwrap();
    let port = held.local_addr().unwrap().port();
    let setup =
        setup(&usual(NOBODY)).environment("TIKIGATE__SERVER__LISTEN", &format!("0.0.0.0:{port}"));
    let log = setup.directory().join("output");
    let told = refusal(&mut holding(&held, &setup, &log), &setup);
    assert!(
        told.contains(&format!("systemd passes a socket on [::]:{port}")),
        "{told}"
    );
}

#[test]
fn what_is_no_listening_socket_is_refused() {
    let setup = setup(&usual(NOBODY));
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut shell = holding(&socket, &setup, &setup.directory().join("output"));
    let told = refusal(shell.stdin(std::process::Stdio::null()), &setup);
    assert!(
        told.contains("socket 1 of those passed by systemd (LISTEN_FDS)"),
        "{told}"
    );
}

#[test]
fn sockets_that_were_passed_to_another_process_are_left_alone() {
    let setup = setup(&usual(NOBODY))
        .environment("LISTEN_FDS", "1")
        .environment("LISTEN_PID", "1");
    let mut gate = setup.start();
    gate.signal(Signal::TERM);
    assert_eq!(gate.wait(Duration::from_secs(20)).code(), Some(0));
}
