//! What became of the configuration, and until when the certificates in it hold.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use super::exposition::{Exposition, Kind};

/// Counts reloads and tells of certificates.
#[derive(Debug)]
pub struct ConfigurationMetrics {
    last_successful: AtomicBool,
    taken: AtomicU64,
    refused: AtomicU64,
    restart_needed: AtomicBool,
    certificates: Mutex<Vec<(String, SystemTime)>>,
}

impl ConfigurationMetrics {
    pub(super) fn new() -> Self {
        Self {
            last_successful: AtomicBool::new(true),
            taken: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            restart_needed: AtomicBool::new(false),
            certificates: Mutex::default(),
        }
    }

    /// A changed configuration is in force; whether part of it waits for a restart.
    pub fn taken(&self, restart_needed: bool) {
        self.taken.fetch_add(1, Ordering::Relaxed);
        self.restart_needed.store(restart_needed, Ordering::Relaxed);
        self.last_successful.store(true, Ordering::Relaxed);
    }

    /// A changed configuration was not taken.
    pub fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        self.last_successful.store(false, Ordering::Relaxed);
    }

    /// The certificates in use, by the key that names their file, and when they end.
    pub fn certificates(&self, ends: Vec<(String, SystemTime)>) {
        let mut certificates = self.lock();
        *certificates = ends;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(String, SystemTime)>> {
        self.certificates
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self, out: &mut Exposition) {
        out.family(
            Kind::Gauge,
            "tikigate_config_last_reload_successful",
            "Whether the last try to load the configuration worked.",
        );
        out.sample(&[], u64::from(self.last_successful.load(Ordering::Relaxed)));
        out.family(
            Kind::Counter,
            "tikigate_config_reloads_total",
            "Changes of the configuration or of a file that it names, by what became of them.",
        );
        for (outcome, count) in [("taken", &self.taken), ("refused", &self.refused)] {
            out.sample(&[("outcome", outcome)], count.load(Ordering::Relaxed));
        }
        out.family(
            Kind::Gauge,
            "tikigate_config_restart_needed",
            "Whether something in the configuration waits for a restart.",
        );
        out.sample(&[], u64::from(self.restart_needed.load(Ordering::Relaxed)));
        out.family(
            Kind::Gauge,
            "tikigate_certificate_not_after_timestamp_seconds",
            "When the first certificate of a file ends, in seconds since 1970, by the key that names the file.",
        );
        for (key, end) in self.lock().iter() {
            let since = end.duration_since(SystemTime::UNIX_EPOCH);
            let seconds = since.unwrap_or_default().as_secs();
            out.sample(&[("certificate", key)], seconds);
        }
    }
}
