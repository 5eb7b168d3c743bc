//! What the listeners ask of connections, replaced together when the configuration changes.

use std::sync::Arc;

use crate::admin::Admission;
use crate::config::Settings;
use crate::server::{CurrentPolicy, Policy, Shared};

/// The running listeners' policies; clones are the same ones.
#[derive(Clone)]
pub(super) struct Listeners {
    /// The inbound listener's.
    pub(super) server: CurrentPolicy,
    /// Its cap on connections.
    pub(super) connections: Arc<Shared>,
    /// The outbound listener's, if there is one.
    pub(super) outbound: Option<CurrentPolicy>,
    /// The admin listener's.
    pub(super) admission: Admission,
}

impl Listeners {
    /// From now on new connections are judged by these settings. Those that are open keep theirs.
    pub(super) fn renew(&self, settings: &Settings) {
        self.server.store(Arc::new(Policy::from(&settings.server)));
        self.connections.resize(settings.server.max_connections);
        if let (Some(policy), Some(outbound)) = (&self.outbound, &settings.outbound) {
            policy.store(Arc::new(Policy::outbound(outbound, &settings.server)));
        }
        self.admission.replace(settings.admin.addresses.clone());
    }
}
