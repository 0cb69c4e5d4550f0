//! What the node shows of itself: reads of published state, which never wait for anybody.

use super::Node;
use crate::worker::{StartProgress, WorkerState, WorkerView};
use atelier_protocol::http::{
    Capabilities, DeviceEntry, DeviceWorker, MemoryEntry, ModelEntry, NodeInfo, Readiness,
};
use atelier_protocol::{Bytes, DeviceId, ErrorBody, ErrorCode};

impl Node {
    #[must_use]
    pub fn devices(&self) -> Vec<DeviceEntry> {
        let inner = &self.0;
        let running = inner.processing.running();
        let view = inner.devices.view();
        let entries = view.devices.iter().map(|device| {
            let worker = inner.workers.get(&device.id).map(crate::worker::WorkerHandle::view);
            let quarantined = inner.processing.quarantined().contains(&device.id);
            let state = match worker.as_ref().map(|worker| worker.state) {
                _ if quarantined => "quarantined",
                Some(WorkerState::Failed) => "failed",
                Some(WorkerState::Starting) => "starting",
                _ if running.contains_key(&device.id) => "busy",
                _ => "ready",
            };
            let worker = worker.map(|worker| DeviceWorker {
                pid: worker.pid,
                state: worker.state.word().to_owned(),
                since: worker.since,
            });
            device.entry(state, inner.loader.numerics(&device.id), worker)
        });
        entries.collect()
    }

    #[must_use]
    pub fn memory(&self) -> Vec<MemoryEntry> {
        // No cache is built yet, so none holds anything.
        let view = self.0.memory.view();
        view.entries.iter().map(|row| row.entry(Bytes(0))).collect()
    }

    #[must_use]
    pub fn models(&self) -> Vec<ModelEntry> {
        let residency = self.0.loader.residency();
        self.0.models.entries(|model| {
            let holds = |(device, names): (&DeviceId, &Vec<String>)| {
                names.contains(&model.id).then(|| device.to_string())
            };
            residency.iter().filter_map(holds).collect()
        })
    }

    /// Also a model that cannot be used, so that its problem can be looked at.
    pub fn model(&self, name: &str) -> Result<ModelEntry, ErrorBody> {
        let entries = self.models();
        if let Some(entry) = entries.iter().find(|entry| entry.id == name) {
            return Ok(entry.clone());
        }
        let id = self.0.models.resolve(Some(name))?.id.clone();
        entries.into_iter().find(|entry| entry.id == id).ok_or_else(|| {
            ErrorBody::new(ErrorCode::ModelNotFound, format!("no model answers to `{name}`"))
        })
    }

    #[must_use]
    pub fn capabilities(&self) -> Capabilities {
        self.0.inference.capabilities(self.0.config.max_body_bytes)
    }

    #[must_use]
    pub fn info(&self) -> NodeInfo {
        let inner = &self.0;
        NodeInfo {
            name: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            boot_id: inner.boot_id.to_string(),
            pid: std::process::id(),
            started_at: inner.started_at.clone(),
            uptime_s: inner.started.elapsed().as_secs_f64(),
            worker_protocol: atelier_protocol::worker::PROTOCOL,
            jobs_queued: inner.processing.queued() as u64,
            jobs_running: inner.processing.running().len() as u64,
            idle_exit_s: inner.config.idle_exit.map(|limit| limit.as_secs()),
        }
    }

    /// Ready when some worker has answered since it started.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        let views: Vec<_> = self.0.workers.iter().map(|(id, w)| (id.clone(), w.view())).collect();
        let ok = views.iter().any(|(_, view)| view.state == WorkerState::Ready);
        let waiting_for =
            if ok { Vec::new() } else { views.iter().map(|(id, view)| wait(id, view)).collect() };
        Readiness { ok, waiting_for }
    }
}

fn wait(device: &DeviceId, view: &WorkerView) -> String {
    let why = match (&view.failure, &view.starting) {
        (Some(failure), _) => failure.message.clone(),
        (None, Some(StartProgress::Install { done_bytes, total_bytes })) => match total_bytes {
            Some(all) => format!("installing {} of {}", Bytes(*done_bytes), Bytes(*all)),
            None => format!("installing, {} so far", Bytes(*done_bytes)),
        },
        (None, Some(StartProgress::Import)) => "importing its libraries".to_owned(),
        (None, None) => view.state.word().to_owned(),
    };
    format!("the worker on {device}: {why}")
}
