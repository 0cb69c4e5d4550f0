//! Any sequence of operations, clean stops and kills, against a model that fits on a page.

use super::*;
use proptest::prelude::*;
use proptest::sample::Index;

#[derive(Clone, Debug)]
enum Step {
    Submit {
        key: Option<u8>,
        body: u8,
    },
    Claim(Index),
    /// `late`: names the attempt before the current one.
    Requeue {
        job: Index,
        late: bool,
    },
    Cancel(Index),
    Finalise {
        job: Index,
        late: bool,
        state: EndState,
        artifacts: u32,
    },
    Restart {
        clean: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let job = any::<Index>;
    let state =
        prop_oneof![Just(EndState::Succeeded), Just(EndState::Failed), Just(EndState::Cancelled)];
    prop_oneof![
        4 => (proptest::option::of(0..3_u8), 0..2_u8)
            .prop_map(|(key, body)| Step::Submit { key, body }),
        6 => job().prop_map(Step::Claim),
        2 => (job(), any::<bool>()).prop_map(|(job, late)| Step::Requeue { job, late }),
        2 => job().prop_map(Step::Cancel),
        4 => (job(), any::<bool>(), state, 0..3_u32).prop_map(|(job, late, state, artifacts)| {
            Step::Finalise { job, late, state, artifacts }
        }),
        1 => any::<bool>().prop_map(|clean| Step::Restart { clean }),
    ]
}

const QUEUE_LIMIT: u32 = 4;

struct Known {
    id: JobId,
    state: JobState,
    attempt: u32,
    cancel: bool,
    artifacts: Vec<ArtifactId>,
}

/// What was acknowledged, and nothing else.
#[derive(Default)]
struct Model {
    jobs: Vec<Known>,
    keys: BTreeMap<u8, (u8, JobId)>,
    events: Vec<StoredEvent>,
}

impl Model {
    fn at(&mut self, index: Index) -> Option<&mut Known> {
        (!self.jobs.is_empty()).then(|| index.get_mut(&mut self.jobs))
    }
    fn in_state(&self, state: JobState) -> usize {
        self.jobs.iter().filter(|job| job.state == state).count()
    }

    async fn apply(&mut self, store: &Store, step: &Step) {
        match *step {
            Step::Submit { key, body } => self.submit(store, key, body).await,
            Step::Claim(index) => {
                let Some(job) = self.at(index) else { return };
                match store.claim(job.id, now(), now()).await.unwrap() {
                    Claim::Claimed { attempt, events } => {
                        assert_eq!((job.state, attempt), (JobState::Queued, job.attempt + 1));
                        (job.state, job.attempt) = (JobState::Running, attempt);
                        self.events.extend(events);
                    }
                    Claim::NotQueued => assert_ne!(job.state, JobState::Queued),
                }
            }
            Step::Requeue { job, late } => {
                let Some(job) = self.at(job) else { return };
                let current = job.state == JobState::Running && !late;
                let attempt = job.attempt.saturating_sub(u32::from(late));
                let outcome =
                    store.requeue(job.id, attempt, AttemptOutcome::Lost, None, now()).await;
                match outcome.unwrap() {
                    Requeued::Yes { events } => {
                        assert!(current && !job.cancel);
                        job.state = JobState::Queued;
                        self.events.extend(events);
                    }
                    Requeued::Cancelled { events } => {
                        assert!(current && job.cancel);
                        job.state = JobState::Cancelled;
                        self.events.extend(events);
                    }
                    Requeued::Stale => assert!(!current),
                }
            }
            Step::Cancel(index) => {
                let Some(job) = self.at(index) else { return };
                let before = (job.state, job.cancel);
                match store.request_cancel(job.id, now()).await.unwrap() {
                    CancelOutcome::Cancelled { events } => {
                        assert_eq!(before.0, JobState::Queued);
                        (job.state, job.cancel) = (JobState::Cancelled, true);
                        self.events.extend(events);
                    }
                    CancelOutcome::Requested => {
                        assert_eq!(before, (JobState::Running, false));
                        job.cancel = true;
                    }
                    CancelOutcome::AlreadyRequested => {
                        assert_eq!(before, (JobState::Running, true));
                    }
                    CancelOutcome::Ended(state) => {
                        assert!(before.0 == state && state.is_terminal());
                    }
                    CancelOutcome::NotFound => panic!("{} was acknowledged", job.id),
                }
            }
            Step::Finalise { job, late, state, artifacts } => {
                let Some(job) = self.at(job) else { return };
                let current = job.state == JobState::Running && !late;
                let attempt = job.attempt.saturating_sub(u32::from(late));
                let pictures: Vec<_> = (0..artifacts).map(artifact).collect();
                let ids: Vec<_> = pictures.iter().map(|picture| picture.id).collect();
                let ending = Ending { state, ..succeeded(pictures) };
                match store.finalise(job.id, attempt, ending, now()).await.unwrap() {
                    Finalised::Done { events } => {
                        assert!(current);
                        job.state = state.into();
                        job.artifacts = ids;
                        self.events.extend(events);
                    }
                    Finalised::Stale => assert!(!current),
                }
            }
            Step::Restart { .. } => unreachable!("the world restarts, not the model"),
        }
    }

    async fn submit(&mut self, store: &Store, key: Option<u8>, body: u8) {
        let mut new = match key {
            Some(key) => with_key(&key.to_string(), &body.to_string()),
            None => new_job(),
        };
        new.queue_limit = QUEUE_LIMIT;
        let id = new.id;
        let before = key.and_then(|key| self.keys.get(&key).copied());
        let queued = self.in_state(JobState::Queued);
        match store.submit(new).await.unwrap() {
            Submitted::New { events } => {
                assert!(before.is_none() && queued < QUEUE_LIMIT as usize);
                let artifacts = Vec::new();
                let state = JobState::Queued;
                self.jobs.push(Known { id, state, attempt: 0, cancel: false, artifacts });
                self.keys.extend(key.map(|key| (key, (body, id))));
                self.events.extend(events);
            }
            Submitted::Replayed { job } => assert_eq!(before, Some((body, job))),
            Submitted::Conflict => assert!(before.is_some_and(|(other, _)| other != body)),
            Submitted::QueueFull { queued: said } => {
                assert!(before.is_none());
                // Above the limit after a restart: what came back keeps its place.
                assert!(said as usize == queued && queued >= QUEUE_LIMIT as usize);
            }
        }
    }

    async fn recover(&mut self, store: &Store) {
        let recovered = store.recover(now()).await.unwrap();
        let (mut requeued, mut cancelled) = (Vec::new(), Vec::new());
        for job in self.jobs.iter_mut().filter(|job| job.state == JobState::Running) {
            if job.cancel {
                job.state = JobState::Cancelled;
                cancelled.push(job.id);
            } else {
                job.state = JobState::Queued;
                requeued.push(job.id);
            }
        }
        assert_eq!((&recovered.requeued, &recovered.cancelled), (&requeued, &cancelled));
        self.events.extend(recovered.events);
    }

    /// Everything that was acknowledged is stored, and nothing besides.
    async fn compare(&self, store: &Store) {
        let stored = store.events_after(None, 0, u32::MAX).await.unwrap();
        assert_eq!(stored, self.events);
        assert!(stored.is_sorted_by(|a, b| a.id < b.id));
        for known in &self.jobs {
            let job = store.job(known.id).await.unwrap().expect("acknowledged");
            assert_eq!((job.state, job.attempt), (known.state, known.attempt));
            assert_eq!(job.cancel_requested, known.cancel);
            let artifacts: Vec<_> = job.artifacts.iter().map(|artifact| artifact.id).collect();
            assert_eq!(artifacts, known.artifacts);
            let open = job.attempts.iter().filter(|attempt| attempt.outcome.is_none()).count();
            assert_eq!(open, usize::from(known.state == JobState::Running));
            assert_eq!(job.attempts.len(), known.attempt as usize);
            let ends = self
                .events
                .iter()
                .filter(|event| event.job == known.id && event.kind == EventKind::End);
            assert_eq!(ends.count(), usize::from(known.state.is_terminal()));
        }
        let line: Vec<_> = store.queued().await.unwrap().iter().map(|job| job.id).collect();
        let expected: Vec<_> = self
            .jobs
            .iter()
            .filter(|job| job.state == JobState::Queued)
            .map(|job| job.id)
            .collect();
        assert_eq!(line, expected);
        let counts = store.counts().await.unwrap();
        let counted = [
            (counts.queued, JobState::Queued),
            (counts.running, JobState::Running),
            (counts.succeeded, JobState::Succeeded),
            (counts.failed, JobState::Failed),
            (counts.cancelled, JobState::Cancelled),
        ];
        for (count, state) in counted {
            assert_eq!(count as usize, self.in_state(state), "{state}");
        }
    }
}

async fn run(steps: Vec<Step>) {
    let (mut folder, mut store) = store();
    let mut model = Model::default();
    for step in &steps {
        if let Step::Restart { clean } = *step {
            if clean {
                store.close().await.unwrap();
            } else {
                folder = copy_as_after_a_kill(folder.path());
            }
            store = open(folder.path());
            model.recover(&store).await;
            model.compare(&store).await;
        } else {
            model.apply(&store, step).await;
        }
    }
    model.compare(&store).await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn jobs_end_once_and_nothing_acknowledged_is_lost(
        steps in proptest::collection::vec(step(), 1..60),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(run(steps));
    }
}
