//! How the writer's replies reach the threads that wait for them: many by one ring.
//!
//! To wake a task of another thread takes a system call. A batch has replies for many tasks of a few
//! threads; so the writer lays all that is for one thread down together and wakes one task there, which
//! hands them out: that costs no further call, and the thread finds all of its work at once.

use std::cell::RefCell;
use std::sync::{Arc, Mutex};

use tokio::runtime::{Handle, Id};
use tokio::sync::Notify;

use super::batch::Job;
use super::lock;

/// The way to the tasks of one runtime.
#[derive(Default)]
pub(super) struct Doorbell {
    laid_down: Mutex<LaidDown>,
    ring: Notify,
}

#[derive(Default)]
struct LaidDown {
    jobs: Vec<Box<dyn Job>>,
    /// The runtime is gone: nobody will come for them.
    gone: bool,
}

thread_local! {
    /// The doorbell of the runtime that was last met on this thread.
    static LAST: RefCell<Option<(Id, Arc<Doorbell>)>> = const { RefCell::new(None) };
}

impl Doorbell {
    /// That of the runtime that this is called in; none outside of any.
    pub(super) fn here() -> Option<Arc<Self>> {
        let runtime = Handle::try_current().ok()?;
        LAST.with_borrow_mut(|last| match last {
            Some((id, doorbell)) if *id == runtime.id() => Some(Arc::clone(doorbell)),
            _ => {
                let doorbell = Arc::<Self>::default();
                runtime.spawn(Porter(Arc::clone(&doorbell)).hand_out());
                *last = Some((runtime.id(), Arc::clone(&doorbell)));
                Some(doorbell)
            }
        })
    }

    /// Lays a committed job down; `true` if it has to be rung for.
    pub(super) fn lay_down(&self, job: Box<dyn Job>) -> bool {
        let mut laid_down = lock(&self.laid_down);
        if laid_down.gone {
            drop(laid_down);
            job.committed();
            return false;
        }
        laid_down.jobs.push(job);
        laid_down.jobs.len() == 1
    }

    /// Wakes who hands them out.
    pub(super) fn ring(&self) {
        self.ring.notify_one();
    }
}

/// Hands out what is laid down at a doorbell, on its runtime.
struct Porter(Arc<Doorbell>);

impl Porter {
    async fn hand_out(self) {
        loop {
            self.0.ring.notified().await;
            let jobs = std::mem::take(&mut lock(&self.0.laid_down).jobs);
            jobs.into_iter().for_each(Job::committed);
        }
    }
}

impl Drop for Porter {
    /// With its runtime. What a reply brings is given back where nobody takes it.
    fn drop(&mut self) {
        let jobs = {
            let mut laid_down = lock(&self.0.laid_down);
            laid_down.gone = true;
            std::mem::take(&mut laid_down.jobs)
        };
        jobs.into_iter().for_each(Job::committed);
    }
}

#[cfg(test)]
mod tests {
    use super::super::StoreError;
    use super::super::batch::Batch;
    use super::*;
    use tokio::sync::oneshot;

    /// A job that says on which thread it was told.
    struct Told(Option<oneshot::Sender<std::thread::ThreadId>>);

    impl Job for Told {
        fn run(&mut self, _: &mut Batch<'_>) -> rusqlite::Result<()> {
            Ok(())
        }

        fn committed(mut self: Box<Self>) {
            let _ = self.0.take().unwrap().send(std::thread::current().id());
        }

        fn failed(self: Box<Self>, _: &StoreError) -> Option<Box<dyn Job>> {
            None
        }
    }

    fn told() -> (Box<Told>, oneshot::Receiver<std::thread::ThreadId>) {
        let (tell, told) = oneshot::channel();
        (Box::new(Told(Some(tell))), told)
    }

    #[tokio::test]
    async fn replies_are_handed_out_where_they_are_waited_for() {
        let doorbell = Doorbell::here().unwrap();
        assert!(Arc::ptr_eq(&doorbell, &Doorbell::here().unwrap()));
        let (first, first_told) = told();
        let (second, second_told) = told();
        let writer = std::thread::spawn(move || {
            let rings = [doorbell.lay_down(first), doorbell.lay_down(second)];
            doorbell.ring();
            rings
        });
        let here = std::thread::current().id();
        assert_eq!(first_told.await.unwrap(), here);
        assert_eq!(second_told.await.unwrap(), here);
        // Only the first into an empty hall has to be rung for.
        assert_eq!(writer.join().unwrap(), [true, false]);
    }

    #[test]
    fn each_runtime_has_its_own_and_a_gone_one_keeps_nothing() {
        let runtime = || {
            tokio::runtime::Builder::new_current_thread()
                .build()
                .unwrap()
        };
        assert!(Doorbell::here().is_none());
        let first = runtime();
        let doorbell = first.block_on(async { Doorbell::here().unwrap() });
        let (waits, mut told_at_the_end) = told();
        assert!(doorbell.lay_down(waits));
        assert!(told_at_the_end.try_recv().is_err());
        drop(first);
        told_at_the_end.try_recv().unwrap();

        let second = runtime();
        let other = second.block_on(async { Doorbell::here().unwrap() });
        assert!(!Arc::ptr_eq(&doorbell, &other));
        let (late, mut told_at_once) = told();
        assert!(!doorbell.lay_down(late));
        told_at_once.try_recv().unwrap();
    }
}
