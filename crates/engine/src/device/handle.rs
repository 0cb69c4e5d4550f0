//! The device domain as everyone else sees it.

use super::actor::{Command, DeviceActor, look};
use super::{CpuSource, Device, DeviceError, DeviceView, Nvidia, NvidiaSource, Source, TorchBuild};
use atelier_protocol::DeviceId;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot, watch};

/// Reads never wait; changes go through the inbox. Cheap to clone.
#[derive(Clone, Debug)]
pub struct DeviceHandle {
    inbox: mpsc::Sender<Command>,
    view: watch::Receiver<DeviceView>,
}

/// What a real node asks: the processor and the NVIDIA driver.
#[must_use]
pub fn system_sources(nvidia: &Nvidia) -> Vec<Box<dyn Source>> {
    vec![Box::new(CpuSource), Box::new(NvidiaSource(nvidia.clone()))]
}

impl DeviceHandle {
    /// Looks once, then answers rescans until the last handle is dropped. `torch` says whether the
    /// needs of our own lock file decide which cards are usable.
    pub async fn start(sources: Vec<Box<dyn Source>>, torch: TorchBuild) -> Self {
        let sources: Arc<[Box<dyn Source>]> = sources.into();
        let (devices, findings) = look(Arc::clone(&sources), torch).await;
        let first =
            DeviceView { generation: 1, devices: devices.into(), findings: findings.into() };
        let (publish, view) = watch::channel(first);
        let (inbox, commands) = mpsc::channel(64);
        let actor = DeviceActor { sources, torch, inbox: commands, view: publish };
        tokio::spawn(actor.run());
        Self { inbox, view }
    }

    /// The latest published state. Never waits.
    #[must_use]
    pub fn view(&self) -> DeviceView {
        self.view.borrow().clone()
    }

    /// One device by its id.
    pub fn get(&self, id: &DeviceId) -> Result<Device, DeviceError> {
        let view = self.view();
        view.devices.iter().find(|device| device.id == *id).cloned().ok_or_else(|| {
            let known = view.devices.iter().map(|device| device.id.clone()).collect();
            DeviceError::NotFound { asked: id.clone(), known }
        })
    }

    /// Looks again; the answer is also what [`Self::view`] gives from then on.
    pub async fn rescan(&self) -> Result<DeviceView, DeviceError> {
        let (reply, answer) = oneshot::channel();
        self.inbox.send(Command::Rescan { reply }).await.map_err(|_| DeviceError::Stopping)?;
        answer.await.map_err(|_| DeviceError::Stopping)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::inventory::tests::card;
    use crate::device::{Found, SourceError, Usable};
    use std::sync::Mutex;

    /// Gives its answers one after another, then fails.
    struct Scripted(Mutex<Vec<Result<Found, SourceError>>>);

    impl Source for Scripted {
        fn name(&self) -> &'static str {
            "scripted"
        }
        fn discover(&self) -> Result<Found, SourceError> {
            let mut answers = self.0.lock().unwrap();
            if answers.is_empty() {
                return Err(SourceError("nothing left to say".to_owned()));
            }
            answers.remove(0)
        }
    }

    fn one_card() -> Found {
        let mut device = card("H", Some("0000:01:00.0"));
        device.id = DeviceId("cuda:0".to_owned());
        Found { devices: vec![device], findings: Vec::new() }
    }

    #[tokio::test]
    async fn a_rescan_publishes_what_changed_and_then_replies() {
        let script = Scripted(Mutex::new(vec![Ok(Found::default()), Ok(one_card())]));
        let sources: Vec<Box<dyn Source>> = vec![Box::new(CpuSource), Box::new(script)];
        let handle = DeviceHandle::start(sources, TorchBuild::Locked).await;
        let cuda = DeviceId("cuda:0".to_owned());
        let missing = handle.get(&cuda).expect_err("the card comes later");
        assert_eq!(missing.to_string(), "no device is called `cuda:0`; there is `cpu`");

        assert_eq!(handle.rescan().await.unwrap().generation, 2);
        assert_eq!(handle.get(&cuda).unwrap().usable, Usable::Yes);
        assert_eq!(handle.view().devices[0].id, DeviceId::cpu());

        let third = handle.rescan().await.unwrap();
        assert_eq!(third.devices.len(), 1, "the source failed, the processor stays");
        assert_eq!(third.findings.to_vec(), ["scripted: nothing left to say"]);
    }

    #[tokio::test]
    async fn an_unusable_card_is_unsupported_whatever_is_said_about_it() {
        let mut found = one_card();
        found.devices[0].compute_capability = Some((6, 1));
        let script = Scripted(Mutex::new(vec![Ok(found)]));
        let handle = DeviceHandle::start(vec![Box::new(script)], TorchBuild::Locked).await;
        let entry = handle.view().devices[0].entry("ready", None, None);
        assert_eq!(entry.state, "unsupported");
        assert_eq!(entry.capabilities.compute_capability.as_deref(), Some("6.1"));
    }
}
