//! Times of one connection, on tokio's paused clock: every wait is exact and takes no time.

use std::io;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::*;
use crate::metrics::ListenerName;
use crate::server::stream::{FIRST_READ, LINGER};
use crate::server::{Policy, Shared};

const SECOND: Duration = Duration::from_secs(1);
const GET: &[u8] = b"GET /now HTTP/1.1\r\nhost: x\r\n\r\n";
/// What the pipe holds; an answer beyond it waits for its reader.
const PIPE: usize = 16 * 1024;
const BIG: usize = 10 * PIPE;

fn limits() -> Limits {
    Limits {
        header_timeout: 5 * SECOND,
        idle_timeout: 60 * SECOND,
        write_timeout: 10 * SECOND,
        lifetime: 3600 * SECOND,
        head_limit: 16 * 1024,
        max_headers: 64,
    }
}

struct Running {
    caller: DuplexStream,
    began: Instant,
    /// When each request's first byte was read, after `began`.
    first_bytes: Arc<Mutex<Vec<Duration>>>,
    closing: Arc<Closing>,
    /// How much was asked for when last something was read.
    asked: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

fn start(limits: Limits) -> Running {
    let began = Instant::now();
    let first_bytes = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&first_bytes);
    let service = tower::service_fn(move |arrived: Arrived<Arriving>| {
        let first_byte = Instant::from_std(arrived.first_byte);
        seen.lock().unwrap().push(first_byte - began);
        async move { Ok::<_, Infallible>(answer(*arrived.request).await) }
    });
    let (caller, server) = tokio::io::duplex(PIPE);
    let closing = Arc::new(Closing::default());
    let shared = Arc::new(Shared::new(1, ListenerName::Server, Arc::default()));
    let entrant = Entrant {
        peer: Peer::Unix,
        trusted: false,
        place: shared.enter(None).unwrap(),
        policy: Arc::new(Policy::open(limits)),
        activity: Arc::new(Activity::new(began)),
        closing: Arc::clone(&closing),
        accepted: began,
    };
    let asked = Arc::default();
    let server = Asking {
        io: server,
        asked: Arc::clone(&asked),
    };
    let task = tokio::spawn(Connections::new(service).serve(server, entrant));
    Running {
        caller,
        began,
        first_bytes,
        closing,
        asked,
        task,
    }
}

/// A pipe that notes how much is asked of it.
struct Asking {
    io: DuplexStream,
    asked: Arc<AtomicUsize>,
}

impl AsyncRead for Asking {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.asked.store(buf.remaining(), Ordering::Relaxed);
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Asking {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// The test's backend: the path says how it behaves.
async fn answer(request: Request<Arriving>) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    let body = match path.as_str() {
        "/body" => request
            .into_body()
            .collect()
            .await
            .map(http_body_util::Collected::to_bytes)
            .unwrap_or_default(),
        "/keep" => {
            tokio::spawn(async move {
                sleep(20 * SECOND).await;
                drop(request);
            });
            Bytes::from_static(b"keep")
        }
        "/later" => {
            tokio::spawn(async move {
                sleep(SECOND).await;
                request.into_body().collect().await
            });
            Bytes::from_static(b"later")
        }
        "/early" => Bytes::from_static(b"early"),
        "/big" => vec![b'b'; BIG].into(),
        "/slow" => {
            sleep(3 * SECOND).await;
            Bytes::from_static(b"slow")
        }
        "/hour" => {
            sleep(3600 * SECOND).await;
            Bytes::from_static(b"hour")
        }
        _ => Bytes::from_static(b"now"),
    };
    Response::new(Full::new(body))
}

impl Running {
    async fn send(&mut self, bytes: &[u8]) {
        self.caller.write_all(bytes).await.unwrap();
    }

    /// Reads one answer: its head and its body.
    async fn receive(&mut self) -> (String, Vec<u8>) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.caller.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        self.caller.read_exact(&mut body).await.unwrap();
        (head, body)
    }

    /// One request and the head of its answer.
    async fn exchange(&mut self) -> String {
        self.send(GET).await;
        self.receive().await.0
    }

    /// Time from the start until this end sees the connection closed without another byte.
    async fn closed_after(&mut self) -> Duration {
        let mut rest = Vec::new();
        // A close that threw bytes away may show as an error.
        let _ = self.caller.read_to_end(&mut rest).await;
        assert_eq!(String::from_utf8_lossy(&rest), "");
        self.began.elapsed()
    }

    fn first_bytes(&self) -> Vec<Duration> {
        self.first_bytes.lock().unwrap().clone()
    }
}

/// The timer counts whole milliseconds.
fn about(time: Duration, wanted: Duration) -> bool {
    time >= wanted && time <= wanted + Duration::from_millis(5)
}

#[tokio::test(start_paused = true)]
async fn a_connection_on_which_nothing_comes_keeps_no_buffer() {
    let mut run = start(limits());
    let rests = |run: &Running| run.asked.load(Ordering::Relaxed) == FIRST_READ;
    sleep(SECOND).await;
    assert!(rests(&run), "before its first request");
    for pause in [1, 2, 3] {
        run.exchange().await;
        assert!(!rests(&run), "another request may follow");
        sleep(pause * SECOND).await;
        assert!(rests(&run));
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_of_which_half_came_with_the_request_before_it_is_kept() {
    for half in [1, 10, GET.len() - 1] {
        let mut run = start(limits());
        run.send(&[GET, &GET[..half]].concat()).await;
        run.receive().await;
        // Long enough for a rest, and then byte by byte.
        sleep(SECOND).await;
        assert_eq!(run.asked.load(Ordering::Relaxed), FIRST_READ);
        for byte in &GET[half..] {
            sleep(SECOND / 8).await;
            run.send(&[*byte]).await;
        }
        assert_eq!(run.receive().await.1, b"now");
    }
}

/// The rest of a body would be read as a request.
#[tokio::test(start_paused = true)]
async fn a_connection_does_not_rest_within_a_body() {
    let mut run = start(limits());
    let head = format!(
        "POST /keep HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n",
        4 + GET.len()
    );
    run.send(head.as_bytes()).await;
    assert_eq!(run.receive().await.1, b"keep");
    for _ in 0..10 {
        sleep(SECOND).await;
        assert_ne!(run.asked.load(Ordering::Relaxed), FIRST_READ);
    }
    run.send(b"body").await;
    run.send(GET).await;
    sleep(SECOND).await;
    assert_eq!(run.first_bytes().len(), 1, "a body's end is no request");
    run.closed_after().await;
    assert_eq!(run.first_bytes().len(), 1);
}

/// The end of another request's body, which is read late, says nothing of this one's.
#[tokio::test(start_paused = true)]
async fn a_body_that_ends_late_ends_no_other() {
    let mut run = start(limits());
    run.send(b"POST /later HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nbody")
        .await;
    assert_eq!(run.receive().await.1, b"later");
    run.send(b"POST /keep HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\n")
        .await;
    assert_eq!(run.receive().await.1, b"keep");
    for _ in 0..10 {
        sleep(SECOND).await;
        assert_ne!(run.asked.load(Ordering::Relaxed), FIRST_READ);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_no_request_ends_a_connection_that_rested() {
    let mut run = start(limits());
    run.exchange().await;
    sleep(SECOND).await;
    run.send(b"GET /now HTTP/1.1\r\nhost: x\r\ncontent-length: +1\r\n\r\n")
        .await;
    run.send(GET).await;
    assert!(run.receive().await.0.starts_with("HTTP/1.1 400"));
    run.closed_after().await;
    assert_eq!(run.first_bytes().len(), 1);
}

/// What is left of hyper's own answer would be lost, and what follows be read as a request.
#[tokio::test(start_paused = true)]
async fn a_connection_does_not_rest_within_an_answer_of_hypers_own() {
    let mut run = start(limits());
    let posted = |length: usize| {
        let head = format!("POST /body HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n");
        [head.into_bytes(), vec![b'x'; length]].concat()
    };
    run.send(&posted(10_000)).await;
    let head = run.receive().await.0.len();
    // Its answer leaves room for a few bytes more.
    let length = PIPE - head - 10;
    run.send(&posted(length)).await;
    run.send(b"nonsense\r\n\r\n").await;
    sleep(2 * SECOND).await;
    assert_eq!(run.receive().await.1.len(), length);
    assert!(run.receive().await.0.starts_with("HTTP/1.1 400"));
    run.closed_after().await;
    assert_eq!(run.first_bytes().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_while_its_connection_rests_ends_it() {
    let mut run = start(limits());
    run.exchange().await;
    sleep(SECOND).await;
    run.caller.shutdown().await.unwrap();
    assert!(about(run.closed_after().await, SECOND));
    run.task.await.unwrap();
    assert!(about(run.began.elapsed(), SECOND));
}

#[tokio::test(start_paused = true)]
async fn requests_that_come_together_let_others_go_between_them() {
    let mut running = start(limits());
    let turns = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&turns);
    tokio::spawn(async move {
        loop {
            counter.fetch_add(1, Ordering::Relaxed);
            let_others_go().await;
        }
    });
    running.send(&GET.repeat(12)).await;
    while running.first_bytes.lock().unwrap().len() < 12 {
        let_others_go().await;
    }
    assert!(turns.load(Ordering::Relaxed) >= 11, "{turns:?}");
}

/// Goes to the end of the queue of tasks; `yield_now` would wait until it is empty.
async fn let_others_go() {
    let mut gone = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut gone, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_request_counts_from_its_own_first_byte() {
    let mut run = start(limits());
    sleep(SECOND).await;
    run.send(&GET[..10]).await;
    sleep(2 * SECOND).await;
    run.send(&GET[10..]).await;
    run.receive().await;
    sleep(20 * SECOND).await;
    run.send(b"POST /body HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\n")
        .await;
    sleep(4 * SECOND).await;
    run.send(b"body").await;
    assert_eq!(run.receive().await.1, b"body");
    sleep(20 * SECOND).await;
    run.send(GET).await;
    run.receive().await;
    let seen = run.first_bytes();
    assert!(about(seen[0], SECOND), "{seen:?}");
    assert!(about(seen[1], 23 * SECOND), "{seen:?}");
    assert!(about(seen[2], 47 * SECOND), "{seen:?}");
}

#[tokio::test(start_paused = true)]
async fn a_pipelined_request_counts_from_the_answer_before_it() {
    let mut run = start(limits());
    let slow = b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n";
    run.send(&[slow, GET].concat()).await;
    assert_eq!(run.receive().await.1, b"slow");
    assert_eq!(run.receive().await.1, b"now");
    let seen = run.first_bytes();
    assert!(about(seen[0], Duration::ZERO), "{seen:?}");
    assert!(about(seen[1], 3 * SECOND), "{seen:?}");
}

#[tokio::test(start_paused = true)]
async fn an_interim_answer_is_not_the_end_of_a_request() {
    let mut run = start(limits());
    run.send(
        b"POST /body HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n",
    )
    .await;
    assert!(run.receive().await.0.starts_with("HTTP/1.1 100"));
    sleep(100 * SECOND).await;
    run.send(b"body").await;
    assert_eq!(run.receive().await.1, b"body");
    run.send(GET).await;
    run.receive().await;
    assert!(about(run.first_bytes()[1], 100 * SECOND));
}

#[tokio::test(start_paused = true)]
async fn empty_lines_before_a_request_are_not_its_first_byte() {
    let mut run = start(limits());
    run.send(GET).await;
    run.receive().await;
    run.send(b"\r\n").await;
    sleep(20 * SECOND).await;
    run.send(GET).await;
    run.receive().await;
    assert!(about(run.first_bytes()[1], 20 * SECOND));
}

#[tokio::test(start_paused = true)]
async fn silence_is_closed_at_the_header_timeout() {
    let mut run = start(limits());
    assert!(about(run.closed_after().await, 5 * SECOND));
}

#[tokio::test(start_paused = true)]
async fn a_head_that_drips_is_closed_at_the_header_timeout() {
    let mut run = start(limits());
    run.send(GET).await;
    run.receive().await;
    sleep(30 * SECOND).await;
    for byte in &GET[..4] {
        run.send(&[*byte]).await;
        sleep(SECOND).await;
    }
    run.send(&GET[4..5]).await;
    assert!(about(run.closed_after().await, 35 * SECOND));
    assert_eq!(run.first_bytes().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_closed_at_the_idle_timeout() {
    let mut run = start(limits());
    run.send(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await;
    run.receive().await;
    sleep(59 * SECOND).await;
    run.send(GET).await;
    run.receive().await;
    assert!(about(run.closed_after().await, 122 * SECOND));
}

#[tokio::test(start_paused = true)]
async fn a_running_call_has_no_limit_here() {
    let mut run = start(Limits {
        lifetime: 7200 * SECOND,
        ..limits()
    });
    run.send(b"GET /hour HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_eq!(run.receive().await.1, b"hour");
    run.send(GET).await;
    assert_eq!(run.receive().await.1, b"now");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_not_taken_is_given_up() {
    let mut run = start(limits());
    run.send(b"GET /big HTTP/1.1\r\nhost: x\r\n\r\n").await;
    run.task.await.unwrap();
    assert!(about(run.began.elapsed(), 10 * SECOND));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_taken_slowly_is_finished() {
    let mut run = start(limits());
    run.send(b"GET /big HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let mut taken = Vec::new();
    while taken.len() < BIG {
        sleep(9 * SECOND).await;
        let mut some = vec![0; PIPE / 2];
        let read = run.caller.read(&mut some).await.unwrap();
        assert!(read > 0, "closed after {} bytes", taken.len());
        taken.extend_from_slice(&some[..read]);
    }
    assert!(run.began.elapsed() > 100 * SECOND);
    assert!(!run.task.is_finished());
}

#[tokio::test(start_paused = true)]
async fn an_old_connection_ends_with_its_next_answer_or_when_idle() {
    let mut run = start(Limits {
        lifetime: 30 * SECOND,
        ..limits()
    });
    assert!(!run.exchange().await.contains("connection: close"));
    let closed = run.closed_after().await;
    assert!(closed >= 27 * SECOND && closed <= 30 * SECOND, "{closed:?}");

    let mut run = start(Limits {
        lifetime: 2 * SECOND,
        ..limits()
    });
    run.send(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let (head, body) = run.receive().await;
    assert!(head.contains("connection: close"), "{head}");
    assert_eq!(body, b"slow");
    assert!(about(run.closed_after().await, 3 * SECOND));
}

#[tokio::test(start_paused = true)]
async fn closing_ends_idle_connections_at_once() {
    let mut run = start(limits());
    run.exchange().await;
    sleep(SECOND).await;
    run.closing.begin();
    assert!(about(run.closed_after().await, SECOND));
    run.task.await.unwrap();
    assert!(about(run.began.elapsed(), SECOND));
}

#[tokio::test(start_paused = true)]
async fn closing_lets_a_request_finish_that_has_begun() {
    let mut run = start(limits());
    run.exchange().await;
    run.send(&GET[..10]).await;
    sleep(SECOND).await;
    run.closing.begin();
    sleep(SECOND).await;
    run.send(&GET[10..]).await;
    let (head, body) = run.receive().await;
    assert!(head.contains("connection: close"), "{head}");
    assert_eq!(body, b"now");
    assert!(about(run.closed_after().await, 2 * SECOND));
}

#[tokio::test(start_paused = true)]
async fn closing_gives_a_new_connection_a_moment() {
    let mut run = start(limits());
    run.closing.begin();
    sleep(Duration::from_millis(100)).await;
    let head = run.exchange().await;
    assert!(head.contains("connection: close"), "{head}");

    let mut silent = start(limits());
    silent.closing.begin();
    assert!(about(
        silent.closed_after().await,
        Duration::from_millis(250)
    ));
}

#[tokio::test(start_paused = true)]
async fn an_answer_before_the_body_was_read_is_not_lost() {
    let mut run = start(limits());
    run.send(b"POST /early HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n")
        .await;
    // The rest of the body comes after the answer was given; none of it may block or reset.
    run.send(&[b'x'; 50_000]).await;
    let (head, body) = run.receive().await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert_eq!(body, b"early");
    run.caller.shutdown().await.unwrap();
    assert!(about(run.closed_after().await, Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn lingering_is_bounded() {
    let mut run = start(limits());
    run.send(b"GET /now HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .await;
    run.receive().await;
    assert!(about(run.closed_after().await, Duration::ZERO));
    timeout(60 * SECOND, run.task).await.unwrap().unwrap();
    assert!(about(run.began.elapsed(), LINGER));
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_half_closes_gets_its_answer() {
    let mut run = start(limits());
    run.send(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await;
    run.caller.shutdown().await.unwrap();
    assert_eq!(run.receive().await.1, b"slow");
    assert!(about(run.closed_after().await, 3 * SECOND));
    run.task.await.unwrap();
}

#[test]
fn lifetimes_are_spread_over_their_last_tenth() {
    let jitter = Jitter::default();
    let drawn: std::collections::HashSet<Duration> =
        (0..1000).map(|_| jitter.shorten(1000 * SECOND)).collect();
    assert!(drawn.len() > 300, "only {} of 1000 differ", drawn.len());
    let (least, most) = (drawn.iter().min().unwrap(), drawn.iter().max().unwrap());
    assert!(*least >= 900 * SECOND && *least < 910 * SECOND, "{least:?}");
    assert!(*most <= 1000 * SECOND && *most > 990 * SECOND, "{most:?}");
}
