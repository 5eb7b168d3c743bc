//! The connections of one worker, and which of them make room for others.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time::Instant;

use super::stream::{Activity, Spare};

/// How long a connection is left in peace though nothing comes: time for a handshake, and for a request
/// that was sent with it.
pub(super) const MIN_STAY: Duration = Duration::from_millis(500);

/// The same for those from which something came: a handshake or a head that a busy machine is slow to read.
pub(super) const MIN_STAY_SLOW: Duration = Duration::from_secs(1);

/// Of the quiet ones a 64th goes at once, so that looking them over is shared by that many newcomers.
const AT_ONCE: usize = 64;

/// Running connections.
#[derive(Debug, Default)]
pub(super) struct Room {
    tasks: JoinSet<()>,
    seats: HashMap<Id, Seat>,
}

#[derive(Debug)]
struct Seat {
    task: AbortHandle,
    activity: Arc<Activity>,
}

impl Room {
    /// Runs a connection.
    pub(super) fn admit(
        &mut self,
        activity: Arc<Activity>,
        connection: impl Future<Output = ()> + Send + 'static,
    ) {
        let task = self.tasks.spawn(connection);
        self.seats.insert(task.id(), Seat { task, activity });
    }

    /// Waits until one has ended; for ever where there is none. Safe to drop.
    pub(super) async fn one_ends(&mut self) {
        match self.tasks.join_next_with_id().await {
            Some(ended) => self.forget(ended),
            None => std::future::pending().await,
        }
    }

    /// Waits until all have ended.
    pub(super) async fn all_end(&mut self) {
        while let Some(ended) = self.tasks.join_next_with_id().await {
            self.forget(ended);
        }
    }

    /// Closes those that have been quiet for longest, and at least [`MIN_STAY`]; returns how many. Nothing
    /// is owed to their callers: they either never sent anything or have all their answers. A request
    /// that is just arriving on one of them ends as a network error, and is sent again.
    ///
    /// Where none is quiet, those go that have been slow for longest: otherwise whoever sends very many heads
    /// a byte at a time, or takes no answers, would keep everybody out. What they lose is sent again, too.
    pub(super) fn displace(&mut self, now: Instant) -> usize {
        while let Some(ended) = self.tasks.try_join_next_with_id() {
            self.forget(ended);
        }
        let mut spare: Vec<((Spare, Instant), &AbortHandle)> = self
            .seats
            .values()
            .filter_map(|seat| Some((seat.activity.spare()?, &seat.task)))
            .filter(|((spare, since), _)| {
                let stay = match spare {
                    Spare::Quiet => MIN_STAY,
                    Spare::Slow | Spare::Stuck => MIN_STAY_SLOW,
                };
                now.saturating_duration_since(*since) >= stay
            })
            .collect();
        let Some(readiest) = spare.iter().map(|((spare, _), _)| *spare).min() else {
            return 0;
        };
        spare.retain(|((spare, _), _)| *spare == readiest);
        let leave = spare.len().div_ceil(AT_ONCE);
        spare.select_nth_unstable_by_key(leave - 1, |((_, since), _)| *since);
        for (_, task) in &spare[..leave] {
            task.abort();
        }
        leave
    }

    fn forget(&mut self, ended: Result<(Id, ()), JoinError>) {
        let id = match ended {
            Ok((id, ())) => id,
            Err(error) => {
                if error.is_panic() {
                    tracing::error!("a connection's task panicked");
                }
                error.id()
            }
        };
        self.seats.remove(&id);
        // After a crowd has gone, its memory goes too.
        if self.seats.capacity() > 256 && self.seats.len() < self.seats.capacity() / 8 {
            self.seats.shrink_to(self.seats.len() * 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn those_that_were_quiet_for_longest_go_first() {
        let mut room = Room::default();
        let mut activities = Vec::new();
        for _ in 0..3 {
            let activity = Arc::new(Activity::new(Instant::now()));
            room.admit(Arc::clone(&activity), std::future::pending());
            activities.push(activity);
            tokio::time::advance(Duration::from_millis(10)).await;
        }
        // The first one's request is being handled.
        activities[0].request_begins();
        assert_eq!(
            room.displace(Instant::now()),
            0,
            "nobody has stayed long enough"
        );
        tokio::time::advance(MIN_STAY).await;
        // Who is still there holds its activity, too.
        let there = || [0, 1, 2].map(|index| Arc::strong_count(&activities[index]) == 2);
        assert_eq!(there(), [true; 3]);
        for left in [[true, false, true], [true, false, false]] {
            assert_eq!(room.displace(Instant::now()), 1);
            room.one_ends().await;
            assert_eq!(there(), left);
        }
        assert_eq!(room.displace(Instant::now()), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn slow_ones_go_when_none_is_quiet() {
        let mut room = Room::default();
        let activity = || Arc::new(Activity::new(Instant::now()));
        let (slow, quiet) = (activity(), activity());
        slow.head_begins();
        for activity in [&slow, &quiet] {
            room.admit(Arc::clone(activity), std::future::pending());
        }
        tokio::time::advance(MIN_STAY_SLOW).await;
        for left in [&slow, &slow] {
            assert_eq!(room.displace(Instant::now()), 1);
            room.one_ends().await;
            assert!(
                room.seats
                    .values()
                    .all(|seat| Arc::ptr_eq(&seat.activity, left))
            );
        }
        assert!(room.seats.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn of_many_some_go_at_once() {
        let mut room = Room::default();
        for _ in 0..200 {
            let activity = Arc::new(Activity::new(Instant::now()));
            room.admit(activity, std::future::pending());
        }
        tokio::time::advance(MIN_STAY).await;
        assert_eq!(room.displace(Instant::now()), 4);
    }
}
