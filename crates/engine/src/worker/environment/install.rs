//! Makes an environment: decides what it will be ([`Intent`]), tells the caller, builds it aside and gives it its name.

use super::error::{from_command, from_tool};
use super::events::{InstallEvent, Step};
use super::holdings::{HoldingKind, MARKER, Marker, PART, Standing, Whole, remove};
use super::notice::{CardFacts, MARGIN, Notice, Why};
use super::python::{self, Python};
use super::uv::{self, Uv};
use super::{EnvironmentError, Environments, InstallOptions, Interpreter, disk, make_folder};
use crate::files;
use crate::worker::command::{Finished, Running, Tool};
use atelier_protocol::Bytes;
use rustix::fs::{FlockOperation, flock};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

const CHECK: &str = include_str!("check.py");

/// Slow lines: 3 GB at 3 Mbit/s. uv itself gives up on a connection that stands still.
const FETCH_LIMIT: Duration = Duration::from_secs(3 * 60 * 60);
/// Another process's whole installation.
const WAIT_LIMIT: Duration = FETCH_LIMIT;
const CREATE_LIMIT: Duration = Duration::from_secs(2 * 60);
/// Reads every file once on a repair.
const CHECK_LIMIT: Duration = Duration::from_secs(15 * 60);
const POLL: Duration = Duration::from_millis(500);
const LOCK_POLL: Duration = Duration::from_millis(200);

/// Variables that would point an installer or interpreter at another environment.
const MISLEADING: [&str; 4] = ["PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CONDA_PREFIX"];

/// What will be made, with what.
pub(super) struct Intent {
    name: String,
    python: Python,
    uv: Uv,
    pub(super) notice: Notice,
}

/// Whether some process holds the lock now.
pub(super) fn is_locked(envs: &Path) -> bool {
    files::open(&envs.join("lock"))
        .is_ok_and(|file| flock(&file, FlockOperation::NonBlockingLockShared).is_err())
}

/// Runs file operations off the async threads. They keep the lock until they end, even if nobody waits any more.
async fn off_thread<T: Send + 'static>(
    lock_file: &File,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let held = lock_file.try_clone()?;
    tokio::task::spawn_blocking(move || {
        let _held = held;
        work()
    })
    .await
    .map_err(io::Error::other)?
}

async fn tell(events: &mpsc::Sender<InstallEvent>, event: InstallEvent) {
    let _ = events.send(event).await; // the caller may have stopped listening
}

impl Environments {
    /// Looks at the machine and decides. Touches nothing.
    pub(super) async fn intend(
        &self,
        cards: &[CardFacts],
        standing: Standing,
    ) -> Result<Intent, EnvironmentError> {
        let (config, facts) = (&self.config, &self.lock.facts);
        let uv = uv::find(&config.path, &config.envs, &self.lock).await;
        let python = python::find(&config.path, uv.absent).await?;
        let notice = Notice {
            why: match standing {
                Standing::Ready(_) => Why::Repair,
                Standing::Missing(why) => why,
            },
            download: facts.download_bytes,
            installed: facts.installed_bytes,
            needed: facts.installed_bytes.saturating_add(MARGIN),
            free: disk::free_bytes(&config.envs)?,
            folder: config.envs.clone(),
            torch: format!("{} {}", facts.torch, facts.torch_build),
            python: python.executable.clone(),
            python_version: python.version(),
            uv_version: uv.version.clone(),
            uv: (!uv.absent).then(|| uv.program.clone()),
            cards_left_out: self.lock.cards_left_out(cards),
        };
        let name = self.lock.environment_name(python.minor(), &uv.version);
        Ok(Intent { name, python, uv, notice })
    }

    /// Waits until no other process installs or removes. The lock goes with the file.
    pub(super) async fn take_lock(
        &self,
        events: Option<&mpsc::Sender<InstallEvent>>,
    ) -> Result<File, EnvironmentError> {
        make_folder(&self.config.envs)?;
        let file = files::create(&self.config.envs.join("lock"))?;
        let started = Instant::now();
        let mut told = false;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(file),
                Err(rustix::io::Errno::WOULDBLOCK) if started.elapsed() < WAIT_LIMIT => {}
                Err(error) => return Err(EnvironmentError::Disk(error.into())),
            }
            if let Some(events) = events
                && !told
            {
                told = true;
                tell(events, InstallEvent::Step(Step::Wait)).await;
            }
            tokio::time::sleep(LOCK_POLL).await;
        }
    }

    pub(super) async fn install(
        &self,
        cards: &[CardFacts],
        options: InstallOptions,
        events: &mpsc::Sender<InstallEvent>,
    ) -> Result<Interpreter, EnvironmentError> {
        let lock_file = self.take_lock(Some(events)).await?;
        if !options.repair
            && let Some(interpreter) = self.ready()
        {
            return Ok(interpreter); // by the process that we waited for
        }
        let standing = self.standing();
        // First, since leftovers take up the space that is counted next.
        self.clear(&lock_file, Some(events)).await?;
        tell(events, InstallEvent::Step(Step::Look)).await;
        let intent = self.intend(cards, standing).await?;
        tell(events, InstallEvent::Notice(Box::new(intent.notice.clone()))).await;
        if !intent.notice.fits() {
            let Notice { folder, needed, free, .. } = intent.notice;
            return Err(EnvironmentError::NoSpace { folder, needed, free });
        }
        let build = Build {
            part: self.config.envs.join(format!("{PART}{}", intent.name)),
            environments: self,
            intent: &intent,
            options,
            lock_file: &lock_file,
            events,
            started: Instant::now(),
        };
        let made = build.run().await;
        if made.is_err()
            && let Err(error) = self.clear(&lock_file, None).await
        {
            tracing::warn!(%error, "the unfinished environment stays until the next installation");
        }
        let whole = made?;
        let pythonpath = self.source.lay_out(&self.config.envs)?;
        let Marker { seconds, installed_bytes: bytes, .. } = whole.marker;
        let interpreter = whole.interpreter(pythonpath);
        let done = InstallEvent::Done { interpreter: interpreter.clone(), seconds, bytes };
        tell(events, done).await;
        Ok(interpreter)
    }

    /// Removes what unfinished installations left.
    async fn clear(
        &self,
        lock_file: &File,
        events: Option<&mpsc::Sender<InstallEvent>>,
    ) -> Result<(), EnvironmentError> {
        let mut leftovers = self.holdings();
        leftovers.retain(|(_, kind)| *kind == HoldingKind::Leftover);
        if !leftovers.is_empty() {
            if let Some(events) = events {
                tell(events, InstallEvent::Step(Step::Clear)).await;
            }
            let remove_all = move || leftovers.iter().try_for_each(|(path, _)| remove(path));
            off_thread(lock_file, remove_all).await?;
        }
        Ok(())
    }
}

/// One installation, under the lock.
struct Build<'a> {
    environments: &'a Environments,
    intent: &'a Intent,
    options: InstallOptions,
    lock_file: &'a File,
    events: &'a mpsc::Sender<InstallEvent>,
    part: PathBuf,
    started: Instant,
}

impl Build<'_> {
    async fn run(&self) -> Result<Whole, EnvironmentError> {
        let Self { environments, intent, .. } = self;
        let envs = &environments.config.envs;
        if intent.uv.absent {
            self.step(Step::Uv).await;
            let path = &environments.config.path;
            uv::fetch(&intent.python, path, envs, &environments.lock, self.lock_file).await?;
        }
        self.step(Step::Create).await;
        self.create().await?;
        self.step(Step::Fetch).await;
        self.sync(false).await?;
        self.step(Step::Check).await;
        let mut damaged = self.damaged().await?;
        if !damaged.is_empty() {
            // Environment and cache are the same files by hard links, so what is damaged here is damaged there.
            tracing::warn!(packages = ?damaged.keys(), "damaged files in uv's cache");
            self.step(Step::Fetch).await;
            self.forget(damaged.keys()).await?;
            self.sync(true).await?;
            self.step(Step::Check).await;
            damaged = self.damaged().await?;
        }
        let versions = self.versions(damaged).await?;
        self.step(Step::Finish).await;
        self.finish(versions).await
    }

    async fn step(&self, step: Step) {
        tell(self.events, InstallEvent::Step(step)).await;
    }

    fn uv(&self, limit: Duration, args: &[&OsStr]) -> Result<Running, EnvironmentError> {
        let config = &self.environments.config;
        Tool::new(&self.intent.uv.program, limit)
            .args(args)
            .env("PATH", &config.path)
            .without_env(&MISLEADING)
            // Not in the caller's folder, whose project settings have nothing to do with us.
            .current_dir(&config.envs)
            .holding(self.lock_file)?
            .start()
            .map_err(|error| from_command(Step::Fetch, error))
    }

    fn judge(&self, step: Step, finished: &Finished) -> Result<(), EnvironmentError> {
        if finished.status.success() {
            return Ok(());
        }
        Err(from_tool(step, "uv", finished, || {
            let Notice { folder, needed, .. } = &self.intent.notice;
            let free = disk::free_bytes(folder).unwrap_or_default();
            (folder.clone(), *needed, free)
        }))
    }

    async fn create(&self) -> Result<(), EnvironmentError> {
        let mut args: Vec<OsString> =
            ["venv", "--quiet", "--relocatable", "--no-project", "--python"]
                .map(OsString::from)
                .to_vec();
        args.extend([self.intent.python.executable.clone().into(), self.part.clone().into()]);
        let args: Vec<&OsStr> = args.iter().map(OsString::as_os_str).collect();
        let finished = self.uv(CREATE_LIMIT, &args)?.finish().await;
        let finished = finished.map_err(|error| from_command(Step::Create, error))?;
        self.judge(Step::Create, &finished)
    }

    fn python(&self) -> PathBuf {
        self.part.join("bin/python")
    }

    async fn sync(&self, again: bool) -> Result<(), EnvironmentError> {
        let requirements = self.part.join("requirements.lock");
        files::write_atomic(&requirements, self.environments.lock.requirements.as_bytes())?;
        let python = self.python();
        let mut args: Vec<&OsStr> = ["pip", "sync", "--quiet", "--no-progress", "--require-hashes"]
            .iter()
            // Without bytecode every worker start costs twice its processor time.
            .chain(&["--compile-bytecode", "--only-binary", ":all:", "--python"])
            .map(OsStr::new)
            .collect();
        args.push(python.as_os_str());
        if again {
            args.push(OsStr::new("--reinstall"));
        }
        args.push(requirements.as_os_str());
        let running = self.uv(FETCH_LIMIT, &args)?;
        let mut meter = Meter {
            part: self.part.clone(),
            pid: running.pid(),
            total: self.intent.notice.installed,
            pause: POLL,
        };
        let finish = running.finish();
        tokio::pin!(finish);
        let finished = loop {
            tokio::select! {
                finished = &mut finish => break finished,
                bytes = meter.next() => {
                    // A listener that is behind gets the next one.
                    let _ = self.events.try_send(bytes);
                }
            }
        };
        let finished = finished.map_err(|error| from_command(Step::Fetch, error))?;
        self.judge(Step::Fetch, &finished)
    }

    /// Packages whose files are not as they were recorded, and some of those files.
    async fn damaged(&self) -> Result<BTreeMap<String, Vec<String>>, EnvironmentError> {
        let mut args = vec!["-I", "-c", CHECK];
        if self.options.repair {
            args.push("contents");
        }
        let finished = Tool::new(&self.python(), CHECK_LIMIT)
            .args(args)
            .without_env(&MISLEADING)
            .holding(self.lock_file)?
            .run()
            .await
            .map_err(|error| from_command(Step::Check, error))?;
        let answer = finished.stdout.lines().last().unwrap_or_default();
        match serde_json::from_str(answer) {
            Ok(damaged) if finished.status.success() => Ok(damaged),
            Ok(_) | Err(_) => Err(EnvironmentError::Tool {
                step: Step::Check,
                tool: "Python".into(),
                said: super::error::last_lines(&finished.stderr),
            }),
        }
    }

    /// Drops packages from uv's cache, so that they are downloaded again.
    async fn forget(
        &self,
        packages: impl Iterator<Item = &String>,
    ) -> Result<(), EnvironmentError> {
        let args: Vec<&OsStr> = ["cache", "clean", "--quiet"]
            .iter()
            .map(OsStr::new)
            .chain(packages.map(OsStr::new))
            .collect();
        let finished = self.uv(CREATE_LIMIT, &args)?.finish().await;
        let finished = finished.map_err(|error| from_command(Step::Fetch, error))?;
        self.judge(Step::Fetch, &finished)
    }

    /// Versions of what a worker needs, or every problem at once.
    async fn versions(
        &self,
        damaged: BTreeMap<String, Vec<String>>,
    ) -> Result<BTreeMap<String, String>, EnvironmentError> {
        let needed = self.environments.lock.needed();
        let names: Vec<&str> = needed.keys().map(String::as_str).collect();
        let path = &self.environments.config.path;
        let mut problems: Vec<String> = damaged
            .into_iter()
            .map(|(package, files)| format!("{package} has damaged files: {}", files.join(", ")))
            .collect();
        let versions = match python::ask(&self.python(), path, &names, true).await {
            Ok(answer) => answer.versions(),
            Err(reason) => {
                problems.push(format!("its Python {reason}"));
                BTreeMap::new()
            }
        };
        for (name, pinned) in &needed {
            match versions.get(name) {
                None => problems.push(format!("{name} is missing")),
                Some(version) if !pinned.contains(version) => {
                    problems.push(format!("{name} has version {version}"));
                }
                Some(_) => {}
            }
        }
        if problems.is_empty() {
            Ok(versions)
        } else {
            Err(EnvironmentError::Incomplete { problems })
        }
    }

    async fn finish(&self, versions: BTreeMap<String, String>) -> Result<Whole, EnvironmentError> {
        let Self { environments, intent, part, started, .. } = self;
        let marker = Marker {
            lock_blake3: environments.lock.blake3.clone(),
            python_version: intent.python.version(),
            base_python: self.python().canonicalize()?,
            uv_version: intent.uv.version.clone(),
            created_at: environments.clock.stamp(),
            installed_bytes: Bytes(0), // measured below
            seconds: 0.0,
            versions,
        };
        let envs = environments.config.envs.clone();
        let (part, folder, started) = (part.clone(), envs.join(&intent.name), *started);
        let whole = off_thread(self.lock_file, move || {
            let mut marker = marker;
            marker.installed_bytes = disk::usage(&part).bytes;
            // uv leaves writing to the kernel. A power cut after the rename would otherwise leave an environment that
            // looks whole and has empty files.
            rustix::fs::syncfs(files::open(&part)?)?;
            marker.seconds = (started.elapsed().as_secs_f64() * 10.0).round() / 10.0;
            let text = serde_json::to_vec_pretty(&marker).map_err(io::Error::other)?;
            files::write_atomic(&part.join(MARKER), &text)?;
            if folder.exists() {
                remove(&folder)?;
            }
            files::rename(&part, &folder)?;
            files::sync_dir(&envs)?;
            Ok(Whole { folder, marker })
        })
        .await?;
        Ok(whole)
    }
}

/// How far uv is. Looks at two cheap things: the bytes that the uv process has written (it unpacks what it downloads
/// straight into its cache, which may hold far more than ours), and the size of the environment, which stays almost
/// empty until the end, when everything is linked into it.
struct Meter {
    part: PathBuf,
    pid: Option<u32>,
    total: Bytes,
    pause: Duration,
}

impl Meter {
    async fn next(&mut self) -> InstallEvent {
        tokio::time::sleep(self.pause).await;
        let written = self.pid.map_or(Bytes(0), written_bytes);
        let (part, looked) = (self.part.clone(), Instant::now());
        let linked = tokio::task::spawn_blocking(move || disk::usage(&part).bytes).await;
        self.pause = POLL.max(looked.elapsed() * 20); // never more than a twentieth of a core
        let done = written.max(linked.unwrap_or_default()).min(self.total);
        InstallEvent::Bytes { done, total: self.total }
    }
}

/// Bytes that a process of ours has written to files so far; none if the kernel does not tell.
fn written_bytes(pid: u32) -> Bytes {
    let text = files::read_to_string(Path::new(&format!("/proc/{pid}/io"))).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("wchar: "));
    Bytes(line.and_then(|number| number.trim().parse().ok()).unwrap_or(0))
}
