//! The least level that is written: one for events and requests, and changeable while they are.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tracing::level_filters::LevelFilter;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

const LEVELS: [LevelFilter; 6] = [
    LevelFilter::OFF,
    LevelFilter::ERROR,
    LevelFilter::WARN,
    LevelFilter::INFO,
    LevelFilter::DEBUG,
    LevelFilter::TRACE,
];

/// The level, shared by all that write.
#[derive(Clone, Debug)]
pub struct LogLevel(Arc<AtomicUsize>);

impl LogLevel {
    pub(super) fn new(level: LevelFilter) -> Self {
        Self(Arc::new(AtomicUsize::new(place(level))))
    }

    pub(super) fn get(&self) -> LevelFilter {
        let place = self.0.load(Ordering::Relaxed);
        LEVELS.get(place).copied().unwrap_or(LevelFilter::INFO)
    }

    /// Takes another level from now on.
    pub fn set(&self, level: LevelFilter) {
        if self.0.swap(place(level), Ordering::Relaxed) != place(level) {
            // Whether an event is wanted is remembered where it stands in the code.
            tracing::callsite::rebuild_interest_cache();
        }
    }
}

fn place(level: LevelFilter) -> usize {
    let place = LEVELS.iter().position(|other| *other == level);
    place.unwrap_or(3)
}

/// Keeps events below the level from being made.
impl<S: Subscriber> Layer<S> for LogLevel {
    fn register_callsite(
        &self,
        metadata: &'static Metadata<'static>,
    ) -> tracing::subscriber::Interest {
        if *metadata.level() <= self.get() {
            tracing::subscriber::Interest::always()
        } else {
            tracing::subscriber::Interest::never()
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        *metadata.level() <= self.get()
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.get())
    }
}
