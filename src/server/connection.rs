//! One connection: hyper's protocol machine and a watchdog over it, in one task.

mod line;

use std::convert::Infallible;
use std::error::Error;
use std::future::{Future, poll_fn};
use std::hash::BuildHasher;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use foldhash::fast::RandomState;
use http::{HeaderValue, Request, Response, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::{Instant, Sleep};
use tower::ServiceExt;
use tower::util::Oneshot;

use super::Service;
use super::body::Arriving;
use super::entry::Entrant;
use super::policy::Limits;
use super::stream::{Activity, Phase, Watched};
use crate::net::{Arrived, Peer};
use line::Line;

/// hyper's own default, which spares it preparing a list of another size.
const HYPER_MAX_HEADERS: usize = 100;

/// The most hyper buffers of a connection, if the head's limit doesn't ask for more.
const BUFFER: usize = 16 * 1024;

/// Makes the connections of one worker.
#[derive(Clone, Debug)]
pub(super) struct Connections<S> {
    service: S,
    jitter: Arc<Jitter>,
}

/// Some chance for each connection of a worker.
#[derive(Debug, Default)]
struct Jitter {
    random: RandomState,
    drawn: AtomicU64,
}

impl Jitter {
    /// Nine to ten tenths of the lifetime: connections that were opened together don't all end together.
    fn shorten(&self, lifetime: Duration) -> Duration {
        let drawn = self.drawn.fetch_add(1, Ordering::Relaxed);
        let thousandth = self.random.hash_one(drawn) % 1000;
        lifetime - lifetime.mul_f64(thousandth as f64 / 10_000.0)
    }
}

impl<S: Service> Connections<S> {
    /// Connections that call `service`.
    pub(super) fn new(service: S) -> Self {
        Self {
            service,
            jitter: Arc::default(),
        }
    }

    /// Serves one connection to its end; its place is given back with the future.
    pub(super) fn serve<I>(
        &self,
        io: I,
        entrant: Entrant,
    ) -> impl Future<Output = ()> + Send + use<I, S>
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Entrant {
            peer,
            place,
            policy,
            activity,
            closing,
            ..
        } = entrant;
        let adapter = Adapter {
            service: self.service.clone(),
            peer,
            activity: Arc::clone(&activity),
        };
        let line = Line::new(Watched::new(io, Arc::clone(&activity)), adapter);
        let lifetime = self.jitter.shorten(policy.limits.lifetime);
        async move {
            let _place = place;
            let ended = drive(line, &activity, &policy.limits, lifetime, &closing);
            match ended.await {
                Ended::Closed => tracing::trace!(?peer, "connection closed"),
                Ended::Broken(error) => tracing::debug!(?peer, %error, "connection broke"),
                Ended::TimedOut(phase) => tracing::debug!(?peer, ?phase, "connection timed out"),
            }
        }
    }
}

fn http(limits: &Limits) -> http1::Builder {
    let mut http = http1::Builder::new();
    // Answers are small: one buffer in one write is cheaper than a list of them.
    http.half_close(true)
        .writev(false)
        .keep_alive(true)
        // hyper's own limit counts idle time too; the watchdog's does not.
        .header_read_timeout(None)
        .max_header_size(limits.head_limit)
        .max_buf_size(limits.head_limit.max(BUFFER));
    if limits.max_headers != HYPER_MAX_HEADERS {
        http.max_headers(limits.max_headers);
    }
    http
}

/// How a connection ended.
enum Ended {
    Closed,
    Broken(Box<dyn Error + Send + Sync>),
    TimedOut(Phase),
}

/// Runs a connection until it ends, or until a limit says that it must.
///
/// A connection that runs into a limit is dropped without an answer: the caller sees a network
/// error and sends again, where a 4xx would lose its message.
async fn drive<I, S>(
    mut line: Line<I, S>,
    activity: &Activity,
    limits: &Limits,
    lifetime: Duration,
    closing: &Closing,
) -> Ended
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service,
{
    let mut closing = pin!(closing.watch());
    let mut watchdog = pin!(Watchdog::new());
    let retire_at = Instant::now().checked_add(lifetime);
    let mut hyper_knows = false;
    poll_fn(|cx| {
        activity.turn_begins();
        loop {
            // Before hyper's turn, so that an answer given in this one says `Connection: close`.
            if !activity.leaving() && closing.as_mut().begun(cx) {
                activity.leave();
            }
            if let Poll::Ready(result) = line.poll(limits, cx) {
                return Poll::Ready(result.map_or_else(Ended::Broken, |()| Ended::Closed));
            }
            if activity.leaving() && !hyper_knows && activity.may_close() {
                hyper_knows = true;
                line.close(limits);
                continue;
            }
            let retire_at = retire_at.filter(|_| !activity.leaving());
            let rest_at = activity.rest_at().filter(|_| line.is_serving());
            let deadline = [activity.deadline(limits), retire_at, rest_at]
                .into_iter()
                .flatten()
                .min();
            ready!(watchdog.as_mut().poll_until(deadline, cx));
            if deadline == rest_at {
                line.rest();
                continue;
            }
            let phase = activity.get().0;
            // An idle connection is closed in order: by TLS its caller is told so.
            let in_order = phase == Phase::Idle && !activity.leaving();
            if deadline != retire_at && !in_order {
                return Poll::Ready(Ended::TimedOut(phase));
            }
            activity.leave();
        }
    })
    .await
}

pin_project! {
    /// One timer for all deadlines of a connection, moved only when it must ring earlier.
    ///
    /// Most requests come and go without touching it: it rings at a deadline that has long moved
    /// on and is then set to the current one.
    struct Watchdog {
        #[pin]
        sleep: Sleep,
        rings_at: Option<Instant>,
    }
}

impl Watchdog {
    fn new() -> Self {
        Self {
            sleep: tokio::time::sleep_until(Instant::now()),
            rings_at: None,
        }
    }

    /// Ready once `deadline` has passed; with none, never.
    fn poll_until(
        self: Pin<&mut Self>,
        deadline: Option<Instant>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        let Some(deadline) = deadline else {
            return Poll::Pending;
        };
        let mut this = self.project();
        loop {
            if this.rings_at.is_none_or(|rings_at| deadline < rings_at) {
                this.sleep.as_mut().reset(deadline);
                *this.rings_at = Some(deadline);
            }
            ready!(this.sleep.as_mut().poll(cx));
            if this.rings_at.take() == Some(deadline) {
                return Poll::Ready(());
            }
        }
    }
}

/// Tells the connections of one worker that it closes.
///
/// Each connection looks at every turn, so looking is one load, without the lock that polling a
/// notification takes.
#[derive(Debug, Default)]
pub(super) struct Closing {
    begun: AtomicBool,
    wake: Notify,
}

impl Closing {
    /// Closing begins.
    pub(super) fn begin(&self) {
        self.begun.store(true, Ordering::Release);
        self.wake.notify_waiters();
    }

    /// Waits until it has begun.
    pub(super) async fn has_begun(&self) {
        let notified = self.wake.notified();
        if !self.begun.load(Ordering::Acquire) {
            notified.await;
        }
    }

    fn watch(&self) -> ClosingWatch<'_> {
        ClosingWatch {
            closing: self,
            notified: self.wake.notified(),
            registered: None,
        }
    }
}

pin_project! {
    struct ClosingWatch<'a> {
        closing: &'a Closing,
        #[pin]
        notified: Notified<'a>,
        registered: Option<Waker>,
    }
}

impl ClosingWatch<'_> {
    /// Whether closing has begun; if not, the task is woken when it does.
    fn begun(self: Pin<&mut Self>, cx: &mut Context<'_>) -> bool {
        let this = self.project();
        if this.closing.begun.load(Ordering::Acquire) {
            return true;
        }
        if this
            .registered
            .as_ref()
            .is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            return false;
        }
        *this.registered = Some(cx.waker().clone());
        this.notified.poll(cx).is_ready()
    }
}

/// Hands hyper's requests to the service, with what the connection knows of them.
struct Adapter<S> {
    service: S,
    peer: Peer,
    activity: Arc<Activity>,
}

impl<S: Service> hyper::service::Service<Request<Incoming>> for Adapter<S> {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Call<Oneshot<S, Arrived<Arriving>>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let activity = &self.activity;
        let behind = activity.is_pipelined().then(|| activity.turn());
        let body = |body| Arriving::new(body, Arc::clone(activity));
        let arrived = Arrived {
            request: Box::new(request.map(body)),
            peer: self.peer,
            first_byte: self.activity.request_begins().into_std(),
        };
        Call {
            running: self.service.clone().oneshot(arrived),
            activity: Arc::clone(&self.activity),
            behind,
        }
    }
}

pin_project! {
    /// A running call; notes when it ends.
    struct Call<F> {
        #[pin]
        running: F,
        activity: Arc<Activity>,
        // The turn in which it came together with the request before it: it waits for the next one.
        behind: Option<u32>,
    }
}

impl<F> Future for Call<F>
where
    F: Future<Output = Result<Response<Full<Bytes>>, Infallible>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        if *this.behind == Some(this.activity.turn()) {
            // hyper would take 16 requests in one turn: whoever sends very many at once on many connections
            // would keep everybody else of this worker waiting for all of them.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let Ok(mut answer) = ready!(this.running.poll(cx));
        this.activity.answer_begins();
        if this.activity.leaving() {
            let close = HeaderValue::from_static("close");
            answer.headers_mut().insert(header::CONNECTION, close);
        }
        Poll::Ready(Ok(answer))
    }
}

#[cfg(test)]
mod tests;
