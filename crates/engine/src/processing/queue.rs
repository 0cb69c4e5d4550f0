//! Who runs next, and where. A value with no clock, channel or I/O.

use atelier_protocol::{DeviceId, JobId};
use std::collections::{BTreeMap, VecDeque};

/// A job in line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Waiting {
    pub(super) job: JobId,
    pub(super) model: String,
    /// The only device that it may run on.
    pub(super) pin: Option<DeviceId>,
}

/// First come, first served; a job pinned to a busy device lets others pass.
#[derive(Debug)]
pub(super) struct Queue {
    waiting: VecDeque<Waiting>,
    /// What runs on each device, best device first.
    devices: Vec<(DeviceId, Option<JobId>)>,
    /// Devices that take jobs without a pin.
    default_devices: usize,
}

impl Queue {
    /// `devices` in order of preference; unpinned jobs go to the first `default_devices` of them.
    pub(super) fn new(devices: Vec<DeviceId>, default_devices: usize) -> Self {
        let devices = devices.into_iter().map(|device| (device, None)).collect();
        Self { waiting: VecDeque::new(), devices, default_devices }
    }

    pub(super) fn push(&mut self, waiting: Waiting) {
        self.waiting.push_back(waiting);
    }

    /// Back to the front: it was already its turn.
    pub(super) fn push_front(&mut self, waiting: Waiting) {
        self.waiting.push_front(waiting);
    }

    pub(super) fn remove(&mut self, job: JobId) {
        self.waiting.retain(|waiting| waiting.job != job);
    }

    /// The next job and its device; the device counts as busy from now on. `healthy` says whether a model may run on a
    /// device just now.
    pub(super) fn start_next(
        &mut self,
        healthy: impl Fn(&DeviceId, &str) -> bool,
    ) -> Option<(Waiting, DeviceId)> {
        if self.devices.iter().all(|(_, running)| running.is_some()) {
            return None;
        }
        for place in 0..self.waiting.len() {
            let Waiting { pin, model, .. } = &self.waiting[place];
            let free = self.devices.iter().enumerate().position(|(index, (device, running))| {
                let pinned = pin.as_ref().map(|pin| pin == device);
                let allowed = pinned.unwrap_or(index < self.default_devices);
                running.is_none() && allowed && healthy(device, model)
            });
            if let Some(free) = free {
                let waiting = self.waiting.remove(place)?;
                self.devices[free].1 = Some(waiting.job);
                return Some((waiting, self.devices[free].0.clone()));
            }
        }
        None
    }

    pub(super) fn finished(&mut self, device: &DeviceId) {
        if let Some(entry) = self.devices.iter_mut().find(|(id, _)| id == device) {
            entry.1 = None;
        }
    }

    /// Places in line, from 0.
    pub(super) fn positions(&self) -> BTreeMap<JobId, u32> {
        (0..).zip(&self.waiting).map(|(place, waiting)| (waiting.job, place)).collect()
    }

    pub(super) fn running(&self) -> BTreeMap<DeviceId, JobId> {
        let busy = self.devices.iter().filter_map(|(id, job)| Some((id.clone(), (*job)?)));
        busy.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(name: &str) -> DeviceId {
        DeviceId(name.to_owned())
    }

    fn waiting(job: JobId, pin: Option<&str>) -> Waiting {
        Waiting { job, model: "m".to_owned(), pin: pin.map(device) }
    }

    fn all(_: &DeviceId, _: &str) -> bool {
        true
    }

    #[test]
    fn a_model_that_is_left_alone_lets_others_pass() {
        let mut queue = Queue::new(vec![device("cpu")], 1);
        let (bad, good) = (JobId::mint(), JobId::mint());
        queue.push(Waiting { model: "bad".to_owned(), ..waiting(bad, None) });
        queue.push(waiting(good, None));
        let healthy = |_: &DeviceId, model: &str| model != "bad";
        assert_eq!(queue.start_next(healthy).map(|(w, _)| w.job), Some(good));
        queue.finished(&device("cpu"));
        assert_eq!(queue.start_next(healthy), None);
        assert_eq!(queue.start_next(all).map(|(w, _)| w.job), Some(bad));
    }

    #[test]
    fn jobs_start_in_order_one_a_device() {
        let mut queue = Queue::new(vec![device("cuda:0"), device("cuda:1")], 2);
        let jobs: Vec<_> = (0..3).map(|_| JobId::mint()).collect();
        for job in &jobs {
            queue.push(waiting(*job, None));
        }
        assert_eq!(
            queue.start_next(all).map(|(w, d)| (w.job, d)),
            Some((jobs[0], device("cuda:0")))
        );
        assert_eq!(
            queue.start_next(all).map(|(w, d)| (w.job, d)),
            Some((jobs[1], device("cuda:1")))
        );
        assert_eq!(queue.start_next(all), None);
        queue.finished(&device("cuda:1"));
        assert_eq!(
            queue.start_next(all).map(|(w, d)| (w.job, d)),
            Some((jobs[2], device("cuda:1")))
        );
    }

    #[test]
    fn a_job_pinned_to_a_busy_device_lets_others_pass_and_keeps_its_place() {
        let mut queue = Queue::new(vec![device("cuda:0"), device("cpu")], 1);
        let jobs: Vec<_> = (0..4).map(|_| JobId::mint()).collect();
        queue.push(waiting(jobs[0], Some("cpu")));
        queue.push(waiting(jobs[1], Some("cpu")));
        queue.push(waiting(jobs[2], None));
        assert_eq!(queue.start_next(all).map(|(w, d)| (w.job, d)), Some((jobs[0], device("cpu"))));
        assert_eq!(
            queue.start_next(all).map(|(w, d)| (w.job, d)),
            Some((jobs[2], device("cuda:0")))
        );
        queue.push(waiting(jobs[3], None));
        assert_eq!(
            queue.start_next(all),
            None,
            "unpinned jobs do not go to the second-class device"
        );
        queue.finished(&device("cpu"));
        assert_eq!(queue.start_next(all).map(|(w, d)| (w.job, d)), Some((jobs[1], device("cpu"))));
    }

    #[test]
    fn a_removed_job_is_not_started_and_places_move_up() {
        let mut queue = Queue::new(vec![device("cpu")], 1);
        let (a, b) = (JobId::mint(), JobId::mint());
        queue.push(waiting(a, None));
        queue.push(waiting(b, None));
        assert_eq!(queue.positions(), [(a, 0), (b, 1)].into());
        queue.remove(a);
        assert_eq!(queue.positions(), [(b, 0)].into());
        assert_eq!(queue.start_next(all).map(|(w, _)| w.job), Some(b));
        assert_eq!(queue.running(), [(device("cpu"), b)].into());
    }
}
