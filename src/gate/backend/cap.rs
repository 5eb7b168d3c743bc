//! How many calls a backend gets at once, shared fairly between clients.
//!
//! While there is room a call takes its place by two atomic operations. Once calls wait, each client
//! has a queue of its own and the clients take turns, so that one with hundreds of waiting calls
//! delays another's by one call. A client alone may use every place. Whoever stops waiting leaves its
//! queue at once; how many wait is bounded by the gate's own cap on calls in flight.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::quality::RandomState;
use tokio::sync::oneshot;

/// A cap, over all workers.
#[derive(Debug)]
pub(in crate::gate) struct Cap {
    /// Places that are free; below zero while more are held than a lowered limit allows.
    free: AtomicIsize,
    /// Calls in the queues. A place is given back in this order: first `free`, then a look here; and
    /// taken in the opposite one, so that no free place is overlooked by both sides.
    waiting: AtomicUsize,
    queues: Mutex<Queues>,
}

#[derive(Debug, Default)]
struct Queues {
    limit: usize,
    next_ticket: u64,
    /// Each has at least one call.
    by_client: HashMap<Arc<str>, BTreeMap<u64, oneshot::Sender<Permit>>, RandomState>,
    /// Whose turn it is: each client with a queue once.
    turns: VecDeque<Arc<str>>,
}

/// A place, given back when it is dropped.
#[derive(Debug)]
pub(in crate::gate) struct Permit {
    cap: Arc<Cap>,
}

impl Cap {
    pub(in crate::gate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            free: AtomicIsize::new(signed(limit)),
            waiting: AtomicUsize::new(0),
            queues: Mutex::new(Queues {
                limit,
                ..Queues::default()
            }),
        })
    }

    /// A place if there is one that nobody waits for.
    pub(in crate::gate) fn try_acquire(self: &Arc<Self>) -> Option<Permit> {
        (self.waiting.load(Ordering::SeqCst) == 0 && self.take()).then(|| self.permit())
    }

    /// A place for a call of this client, in its turn. Dropping the future leaves the queue.
    pub(in crate::gate) async fn acquire(self: &Arc<Self>, client: &Arc<str>) -> Permit {
        if let Some(permit) = self.try_acquire() {
            return permit;
        }
        loop {
            let mut waiter = self.queue_up(client);
            if let Ok(permit) = (&mut waiter.place).await {
                return permit;
            }
            // A queue gives its calls a place or keeps them: nothing else drops their other end.
        }
    }

    /// Changes how many places there are. Those that are held count on: after a lower limit nobody
    /// gets one until so many were given back.
    pub(in crate::gate) fn resize(self: &Arc<Self>, limit: usize) {
        let mut queues = self.lock();
        let more = signed(limit) - signed(queues.limit);
        queues.limit = limit;
        self.free.fetch_add(more, Ordering::SeqCst);
        self.hand_out(&mut queues);
    }

    fn queue_up(self: &Arc<Self>, client: &Arc<str>) -> Waiter {
        let (sender, place) = oneshot::channel();
        let mut queues = self.lock();
        let ticket = queues.push(client, sender);
        self.waiting.fetch_add(1, Ordering::SeqCst);
        // A place may have become free since this call last looked.
        self.hand_out(&mut queues);
        Waiter {
            cap: Arc::clone(self),
            client: Arc::clone(client),
            ticket,
            place,
        }
    }

    fn take(&self) -> bool {
        let less = |free: isize| (free > 0).then_some(free - 1);
        let taken = self
            .free
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, less);
        taken.is_ok()
    }

    fn give_back(self: &Arc<Self>) {
        self.free.fetch_add(1, Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.hand_out(&mut self.lock());
        }
    }

    /// Gives what is free to those who wait.
    fn hand_out(self: &Arc<Self>, queues: &mut Queues) {
        while !queues.turns.is_empty() && self.take() {
            let Some(sender) = queues.pop() else {
                self.free.fetch_add(1, Ordering::SeqCst);
                return;
            };
            self.waiting.fetch_sub(1, Ordering::SeqCst);
            if let Err(unwanted) = sender.send(self.permit()) {
                // Its drop would take the lock that is held here.
                std::mem::forget(unwanted);
                self.free.fetch_add(1, Ordering::SeqCst);
            }
        }
    }

    fn permit(self: &Arc<Self>) -> Permit {
        Permit {
            cap: Arc::clone(self),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queues> {
        // Nothing in between can panic half-way: what is there is whole.
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.cap.give_back();
    }
}

impl Queues {
    fn push(&mut self, client: &Arc<str>, sender: oneshot::Sender<Permit>) -> u64 {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let queue = self.by_client.entry(Arc::clone(client)).or_default();
        if queue.is_empty() {
            self.turns.push_back(Arc::clone(client));
        }
        queue.insert(ticket, sender);
        ticket
    }

    /// The oldest call of the client whose turn it is.
    fn pop(&mut self) -> Option<oneshot::Sender<Permit>> {
        let client = self.turns.pop_front()?;
        let queue = self.by_client.get_mut(&client)?;
        let (_, sender) = queue.pop_first()?;
        if queue.is_empty() {
            self.by_client.remove(&client);
        } else {
            self.turns.push_back(client);
        }
        Some(sender)
    }

    /// Takes a call out; whether it was there.
    fn remove(&mut self, client: &Arc<str>, ticket: u64) -> bool {
        let Some(queue) = self.by_client.get_mut(client) else {
            return false;
        };
        let was_there = queue.remove(&ticket).is_some();
        if queue.is_empty() {
            self.by_client.remove(client);
            self.turns.retain(|other| other != client);
        }
        was_there
    }
}

/// A call in its queue.
struct Waiter {
    cap: Arc<Cap>,
    client: Arc<str>,
    ticket: u64,
    place: oneshot::Receiver<Permit>,
}

impl Drop for Waiter {
    fn drop(&mut self) {
        // If it was given a place this very moment, that is dropped with the channel, afterwards.
        if self.cap.lock().remove(&self.client, self.ticket) {
            self.cap.waiting.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

fn signed(limit: usize) -> isize {
    isize::try_from(limit).unwrap_or(isize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::{Pin, pin};
    use std::task::{Context, Poll, Waker};

    fn client(name: &str) -> Arc<str> {
        Arc::from(name)
    }

    type Waiting<'w> = Pin<Box<dyn Future<Output = Permit> + 'w>>;

    fn begin<'w>(cap: &'w Arc<Cap>, client: &'w Arc<str>) -> Waiting<'w> {
        let mut waiting: Waiting<'w> = Box::pin(cap.acquire(client));
        assert!(poll(&mut waiting).is_none(), "it should wait");
        waiting
    }

    fn poll(waiting: &mut Waiting<'_>) -> Option<Permit> {
        match waiting
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
        {
            Poll::Ready(permit) => Some(permit),
            Poll::Pending => None,
        }
    }

    fn held(cap: &Arc<Cap>, count: usize) -> Vec<Permit> {
        (0..count).map(|_| cap.try_acquire().unwrap()).collect()
    }

    fn is_idle(cap: &Arc<Cap>, limit: isize) -> bool {
        let queues = cap.lock();
        cap.free.load(Ordering::SeqCst) == limit
            && cap.waiting.load(Ordering::SeqCst) == 0
            && queues.turns.is_empty()
            && queues.by_client.is_empty()
    }

    #[test]
    fn one_client_may_have_every_place() {
        let cap = Cap::new(3);
        let permits = held(&cap, 3);
        assert!(cap.try_acquire().is_none());
        drop(permits);
        assert!(is_idle(&cap, 3));
    }

    #[test]
    fn clients_take_turns_however_many_calls_each_has() {
        let cap = Cap::new(1);
        let (loud, quiet, third) = (client("loud"), client("quiet"), client("third"));
        let mut permits = held(&cap, 1);
        let mut louds: Vec<_> = (0..100).map(|_| begin(&cap, &loud)).collect();
        let mut quiets: Vec<_> = (0..2).map(|_| begin(&cap, &quiet)).collect();
        let mut thirds = vec![begin(&cap, &third)];
        let mut served = String::new();
        for _ in 0..6 {
            permits.pop();
            for (name, waiting) in [('l', &mut louds), ('q', &mut quiets), ('t', &mut thirds)] {
                // Within a client the oldest comes first.
                if let Some(permit) = waiting.first_mut().and_then(poll) {
                    permits.push(permit);
                    drop(waiting.remove(0));
                    served.push(name);
                }
            }
            assert_eq!(permits.len(), 1, "{served}");
        }
        assert_eq!(served, "lqtlql");
        drop((louds, quiets, thirds, permits));
        assert!(is_idle(&cap, 1));
    }

    #[test]
    fn nobody_overtakes_those_who_wait() {
        let cap = Cap::new(1);
        let one = client("one");
        let permits = held(&cap, 1);
        let mut waiting = begin(&cap, &one);
        drop(permits);
        assert!(cap.try_acquire().is_none());
        drop(poll(&mut waiting).unwrap());
        assert!(is_idle(&cap, 1));
    }

    #[test]
    fn who_stops_waiting_leaves_nothing_behind() {
        let cap = Cap::new(1);
        let (one, two) = (client("one"), client("two"));
        let permits = held(&cap, 1);
        let (first, mut second) = (begin(&cap, &one), begin(&cap, &two));
        drop(first);
        assert_eq!(cap.lock().turns.len(), 1);
        drop(permits);
        let permit = poll(&mut second).unwrap();
        // Given a place and gone before it looked: the place goes on.
        let (third, mut fourth) = (begin(&cap, &one), begin(&cap, &two));
        drop(permit);
        drop(third);
        drop(poll(&mut fourth).unwrap());
        drop(fourth);
        assert!(is_idle(&cap, 1));
    }

    #[test]
    fn a_higher_limit_holds_at_once_and_a_lower_one_as_calls_end() {
        let cap = Cap::new(2);
        let one = client("one");
        let mut permits = held(&cap, 2);
        let mut waiting: Vec<_> = (0..3).map(|_| begin(&cap, &one)).collect();
        cap.resize(4);
        permits.push(poll(&mut waiting[0]).unwrap());
        permits.push(poll(&mut waiting[1]).unwrap());
        assert!(poll(&mut waiting[2]).is_none());
        cap.resize(1);
        for _ in 0..3 {
            permits.pop();
            assert!(poll(&mut waiting[2]).is_none(), "{} run", permits.len());
        }
        permits.pop();
        permits.push(poll(&mut waiting[2]).unwrap());
        assert!(cap.try_acquire().is_none());
        drop((waiting, permits));
        assert!(is_idle(&cap, 1));
    }

    #[test]
    fn no_place_is_lost_between_threads() {
        let cap = Cap::new(2);
        let running = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (cap, running) = (&cap, &running);
                scope.spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread()
                        .build()
                        .unwrap();
                    let client = client(["a", "b"][thread % 2]);
                    runtime.block_on(async {
                        for turn in 0..2000 {
                            let mut acquiring = pin!(cap.acquire(&client));
                            if turn % 7 == 0 {
                                // Begins to wait, perhaps, and goes away.
                                let noop = &mut Context::from_waker(Waker::noop());
                                let _ = acquiring.as_mut().poll(noop);
                                continue;
                            }
                            let permit = acquiring.await;
                            assert!(running.fetch_add(1, Ordering::SeqCst) < 2);
                            tokio::task::yield_now().await;
                            running.fetch_sub(1, Ordering::SeqCst);
                            drop(permit);
                        }
                    });
                });
            }
        });
        assert!(is_idle(&cap, 2));
    }
}
