//! The whole of it against interpreters and installers made of shell scripts, and once against the real ones.

use super::lock::{Facts, Lock};
use super::*;
use atelier_protocol::{Bytes, ErrorCode};
use std::os::unix::fs::PermissionsExt;
use tempfile::TempDir;

const REQUIREMENTS: &str = "msgspec==0.22.0 \\\n    --hash=sha256:00\n";
const INSTALLS: &str = "echo here > \"$part/installed\"";
const UNREACHABLE: &str = "echo 'error: Request failed\n  cause: dns error' >&2; exit 2";

/// A machine: a folder for programs that is the whole `PATH`, and a folder for environments.
struct Machine {
    folder: TempDir,
    facts: Facts,
}

impl Machine {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        files::create_dir_all(&folder.path().join("bin")).unwrap();
        let facts = Facts { installed_bytes: Bytes(1000), ..Lock::embedded().facts };
        Self { folder, facts }
    }
    fn at(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }
    fn envs(&self) -> PathBuf {
        self.at("envs")
    }
    fn program(&self, name: &str, script: &str) {
        let path = self.at("bin").join(name);
        let text = format!("#!/bin/sh\nfolder={}\n{script}", self.folder.path().display());
        files::write_atomic(&path, text.as_bytes()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    /// An interpreter that says what it is, makes environments, and whose pip brings `bin/fetched-uv`.
    fn python(&self, name: &str, version: (u32, u32, u32), has_venv: bool, packages: &str) {
        let (major, minor, patch) = version;
        self.program(
            name,
            &format!(
                r#"PATH=/usr/bin:/bin
case "$*" in
"-I -m venv "*) mkdir -p "$4/bin"; ln -s "$0" "$4/bin/python"; touch "$4/pyvenv.cfg" ;;
"-I -m pip "*) cp "$folder/bin/fetched-uv" "${{0%/*}}/uv" ;;
*damaged*) echo '{{}}' ;;
*) echo '{{"executable": "'"$folder"'/bin/{name}", "version": [{major}, {minor}, {patch}],' \
    '"implementation": "cpython", "free_threaded": false, "has_venv": {has_venv},' \
    '"packages": {{{packages}}}}}' | tr -d '\n'; echo ;;
esac"#
            ),
        );
    }
    /// A uv whose `pip sync` is the given script; `$part` is the environment that it fills.
    fn uv(&self, name: &str, version: &str, sync: &str) {
        self.program(
            name,
            &format!(
                r#"PATH=/usr/bin:/bin
echo "$*" >> "$folder/said"
for word; do before=$last; last=$word; done
case "$*" in
--version) echo "uv {version} (x86_64)" ;;
venv*) mkdir -p "$last/bin"; ln -s "$before" "$last/bin/python"; touch "$last/pyvenv.cfg" ;;
"pip sync"*) part=${{last%/*}}
{sync}
;;
esac"#
            ),
        );
    }
    fn ordinary() -> Self {
        let machine = Self::new();
        machine.python("python3.11", (3, 11, 7), true, r#""msgspec": "0.22.0""#);
        machine.uv("uv", "0.13.9", INSTALLS);
        machine
    }
    fn environments(&self) -> Environments {
        self.with_lock(REQUIREMENTS, None)
    }
    fn with_lock(&self, requirements: &'static str, python: Option<PathBuf>) -> Environments {
        let path = self.at("bin").into_os_string();
        let config = EnvironmentConfig { envs: self.envs(), python, path };
        let lock = Lock::new(requirements, "uv==0.13.9", self.facts.clone());
        Environments::with_lock(config, Clock::system(), lock)
    }
    /// How often uv was asked to install.
    fn installations(&self) -> usize {
        let said = files::read_to_string(&self.at("said")).unwrap_or_default();
        said.lines().filter(|line| line.starts_with("pip sync")).count()
    }
    fn in_envs(&self) -> Vec<String> {
        let paths = files::read_dir(&self.envs()).unwrap_or_default();
        paths.iter().map(|path| path.file_name().unwrap().to_string_lossy().into()).collect()
    }
    fn leftovers(&self) -> Vec<String> {
        self.in_envs().into_iter().filter(|name| name.starts_with(".part-")).collect()
    }
}

async fn ensure(environments: &Environments) -> Result<Interpreter, EnvironmentError> {
    ensure_and_listen(environments, InstallOptions::default()).await.0
}

async fn ensure_and_listen(
    environments: &Environments,
    options: InstallOptions,
) -> (Result<Interpreter, EnvironmentError>, Vec<InstallEvent>) {
    let (sender, mut receiver) = mpsc::channel(100);
    let result = environments.ensure(&[], options, sender).await;
    let mut events = Vec::new();
    while let Some(event) = receiver.recv().await {
        events.push(event);
    }
    (result, events)
}

#[tokio::test]
async fn an_environment_is_announced_made_and_ready() {
    let machine = Machine::ordinary();
    let environments = machine.environments();
    assert_eq!(environments.ready(), None);
    let (made, events) = ensure_and_listen(&environments, InstallOptions::default()).await;
    let interpreter = made.unwrap();
    assert_eq!(environments.ready(), Some(interpreter.clone()));
    assert_eq!(interpreter.python_version, "3.11.7");
    assert!(interpreter.pythonpath.join("atelier_worker").is_dir());
    let Origin::Managed { name } = &interpreter.origin else { panic!("{interpreter:?}") };
    assert!(machine.envs().join(name).join("installed").exists());
    let steps: Vec<_> = events
        .iter()
        .map(|event| match event {
            InstallEvent::Notice(notice) => format!("notice {:?}", notice.why),
            InstallEvent::Step(step) => format!("{step:?}"),
            InstallEvent::Bytes { .. } => "bytes".into(),
            InstallEvent::Done { .. } => "done".into(),
        })
        .filter(|word| word != "bytes")
        .collect();
    assert_eq!(steps, ["Look", "notice First", "Create", "Fetch", "Check", "Finish", "done"]);
    assert_eq!(machine.leftovers(), Vec::<String>::new());
}

#[tokio::test]
async fn a_second_time_runs_nothing_even_after_an_update_of_uv() {
    let machine = Machine::ordinary();
    let first = ensure(&machine.environments()).await.unwrap();
    let said = files::read_to_string(&machine.at("said")).unwrap();
    machine.uv("uv", "0.14.0", INSTALLS);
    let (second, events) =
        ensure_and_listen(&machine.environments(), InstallOptions::default()).await;
    assert_eq!(second.unwrap(), first);
    assert_eq!(events, []);
    assert_eq!(files::read_to_string(&machine.at("said")).unwrap(), said);
}

#[tokio::test]
async fn a_plan_touches_nothing() {
    let machine = Machine::ordinary();
    let plan = machine.environments().plan(&[], InstallOptions::default()).await.unwrap();
    let Plan::Install(notice) = plan else { panic!("{plan:?}") };
    assert_eq!(notice.python, machine.at("bin/python3.11"));
    assert_eq!(notice.uv, Some(machine.at("bin/uv")));
    assert!(notice.fits());
    assert!(!machine.envs().exists());
}

#[tokio::test]
async fn without_any_python_the_error_lists_what_was_found() {
    let machine = Machine::new();
    machine.python("python3", (3, 9, 2), true, "");
    machine.program("python3.12", "echo 'pyenv: python3.12: command not found' >&2; exit 127");
    let error = ensure(&machine.environments()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::EnvironmentPythonMissing);
    let text = error.to_string();
    assert!(text.contains("python3 is Python 3.9.2"), "{text}");
    assert!(text.contains("python3.12 does not run: pyenv"), "{text}");
}

#[tokio::test]
async fn a_python_without_venv_is_enough_only_where_uv_is_there() {
    let machine = Machine::new();
    machine.python("python3", (3, 12, 1), false, r#""msgspec": "0.22.0""#);
    let error = ensure(&machine.environments()).await.unwrap_err();
    assert!(matches!(error, EnvironmentError::VenvMissing { .. }), "{error}");
    machine.uv("uv", "0.8.0", INSTALLS);
    ensure(&machine.environments()).await.unwrap();
}

#[tokio::test]
async fn an_old_uv_is_replaced_by_a_private_one() {
    let machine = Machine::ordinary();
    machine.uv("uv", "0.7.22", "echo too old >&2; exit 1");
    machine.uv("fetched-uv", "0.13.9", INSTALLS);
    let (made, events) =
        ensure_and_listen(&machine.environments(), InstallOptions::default()).await;
    made.unwrap();
    assert!(events.contains(&InstallEvent::Step(Step::Uv)), "{events:?}");
    assert!(machine.envs().join("uv-0.13.9/bin/uv").exists());
    // It is kept for the next environment.
    machine.environments().prune(true).await.unwrap();
    let (again, events) =
        ensure_and_listen(&machine.environments(), InstallOptions { repair: true }).await;
    again.unwrap();
    assert!(!events.contains(&InstallEvent::Step(Step::Uv)), "{events:?}");
}

#[tokio::test]
async fn an_unreachable_registry_is_named_and_leaves_nothing_half_made() {
    let machine = Machine::ordinary();
    machine.uv("uv", "0.13.9", UNREACHABLE);
    let error = ensure(&machine.environments()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::EnvironmentUnreachable);
    assert!(error.to_string().contains("dns error"), "{error}");
    assert_eq!(machine.in_envs(), ["lock"]);
    files::remove_file(&machine.at("bin/uv")).unwrap();
    machine.program("fetched-uv", ""); // pip brings something that is no uv
    let error = ensure(&machine.environments()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::EnvironmentBroken);
    assert_eq!(machine.leftovers(), Vec::<String>::new());
    machine.uv("fetched-uv", "0.13.9", INSTALLS);
    ensure(&machine.environments()).await.unwrap();
}

#[tokio::test]
async fn any_other_failure_is_broken_with_the_last_words() {
    let machine = Machine::ordinary();
    machine.uv("uv", "0.13.9", "echo 'Hash mismatch for `six`' >&2; exit 2");
    let error = ensure(&machine.environments()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::EnvironmentBroken);
    assert!(error.to_string().contains("Hash mismatch for `six`"), "{error}");
}

#[tokio::test]
async fn packages_of_other_versions_than_the_lock_are_refused() {
    let machine = Machine::ordinary();
    machine.python("python3.11", (3, 11, 7), true, r#""msgspec": "0.1.0""#);
    let error = ensure(&machine.environments()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::EnvironmentBroken);
    assert!(error.to_string().contains("msgspec has version 0.1.0"), "{error}");
    assert_eq!(machine.environments().ready(), None);
}

#[tokio::test]
async fn too_little_disk_is_told_with_both_numbers_before_anything_is_downloaded() {
    let mut machine = Machine::ordinary();
    machine.facts.installed_bytes = Bytes::gib(1 << 30);
    let (made, events) =
        ensure_and_listen(&machine.environments(), InstallOptions::default()).await;
    let error = made.unwrap_err();
    assert_eq!(error.code(), ErrorCode::EnvironmentNoSpace);
    let EnvironmentError::NoSpace { needed, free, .. } = &error else { panic!("{error}") };
    assert_eq!(*needed, Bytes::gib((1 << 30) + 1));
    assert!(error.to_string().contains(&free.to_string()), "{error}");
    assert!(events.iter().any(|event| matches!(event, InstallEvent::Notice(n) if !n.fits())));
    assert_eq!(machine.installations(), 0);
    assert_eq!(machine.in_envs(), ["lock"]);
}

#[tokio::test]
async fn an_environment_is_borrowed_without_a_trace_in_its_folder() {
    let machine = Machine::ordinary();
    let scratch = machine.at("scratch");
    assert_eq!(machine.environments().borrow(&scratch).await.unwrap(), None);
    assert!(!machine.envs().exists() && !scratch.exists());
    let made = ensure(&machine.environments()).await.unwrap();
    assert_eq!(machine.environments().borrow(&scratch).await.unwrap(), Some(made.clone()));
    assert!(!scratch.exists(), "the source that lies there already is used");
    files::remove_dir_all(&made.pythonpath).unwrap();
    let before = machine.in_envs();
    let borrowed = machine.environments().borrow(&scratch).await.unwrap().unwrap();
    assert!(borrowed.pythonpath.starts_with(&scratch));
    assert!(borrowed.pythonpath.join("atelier_worker/__main__.py").exists());
    assert_eq!(machine.in_envs(), before);
}

#[tokio::test]
async fn an_installation_that_was_cut_off_is_repaired_by_the_next() {
    let machine = Machine::ordinary();
    machine.uv("uv", "0.13.9", "echo half > \"$part/half\"; exec sleep 600");
    let environments = machine.environments();
    let (sender, mut receiver) = mpsc::channel(100);
    let cut_off = {
        let environments = environments.clone();
        tokio::spawn(
            async move { environments.ensure(&[], InstallOptions::default(), sender).await },
        )
    };
    while !matches!(receiver.recv().await.unwrap(), InstallEvent::Bytes { .. }) {}
    assert_eq!(environments.info().await.state, EnvironmentState::Busy);
    cut_off.abort();
    assert!(cut_off.await.unwrap_err().is_cancelled());
    assert_eq!(environments.ready(), None);
    assert_eq!(machine.leftovers().len(), 1);
    machine.uv("uv", "0.13.9", INSTALLS);
    let (made, events) = ensure_and_listen(&environments, InstallOptions::default()).await;
    made.unwrap();
    let why = events.iter().find_map(|event| match event {
        InstallEvent::Notice(notice) => Some(notice.why),
        InstallEvent::Step(_) | InstallEvent::Bytes { .. } | InstallEvent::Done { .. } => None,
    });
    assert_eq!(why, Some(Why::Interrupted));
    assert_eq!(machine.leftovers(), Vec::<String>::new());
}

#[tokio::test]
async fn an_environment_without_marker_or_python_is_made_again() {
    let machine = Machine::ordinary();
    let environments = machine.environments();
    let python = ensure(&environments).await.unwrap().python;
    let folder = python.parent().unwrap().parent().unwrap();
    files::remove_file(&folder.join(holdings::MARKER)).unwrap();
    assert_eq!(environments.ready(), None);
    assert_eq!(environments.info().await.state, EnvironmentState::Interrupted);
    ensure(&environments).await.unwrap();
    // The interpreter moves to another version of itself, as a system upgrade does.
    machine.python("python3.12", (3, 12, 0), true, r#""msgspec": "0.22.0""#);
    files::remove_file(&machine.at("bin/python3.11")).unwrap();
    assert_eq!(environments.ready(), None);
    assert_eq!(ensure(&environments).await.unwrap().python_version, "3.12.0");
    assert_eq!(machine.installations(), 3);
}

#[tokio::test]
async fn of_two_installers_one_works_and_the_other_waits_for_it() {
    let machine = Machine::ordinary();
    let waits = format!("while ! [ -e \"$folder/go\" ]; do sleep 0.05; done; {INSTALLS}");
    machine.uv("uv", "0.13.9", &waits);
    let start = |sender| {
        let environments = machine.environments();
        tokio::spawn(
            async move { environments.ensure(&[], InstallOptions::default(), sender).await },
        )
    };
    let (first_sender, mut first_events) = mpsc::channel(100);
    let first = start(first_sender);
    while first_events.recv().await.unwrap() != InstallEvent::Step(Step::Fetch) {}
    let (second_sender, mut second_events) = mpsc::channel(100);
    let second = start(second_sender);
    assert_eq!(second_events.recv().await, Some(InstallEvent::Step(Step::Wait)));
    files::write_atomic(&machine.at("go"), b"").unwrap();
    let (first, second) = (first.await.unwrap().unwrap(), second.await.unwrap().unwrap());
    assert_eq!(first, second);
    assert_eq!(machine.installations(), 1);
}

#[tokio::test]
async fn another_lock_is_another_environment_and_pruning_removes_what_is_not_used() {
    let machine = Machine::ordinary();
    let old = ensure(&machine.with_lock("# older\nmsgspec==0.22.0", None)).await.unwrap();
    let environments = machine.environments();
    let plan = environments.plan(&[], InstallOptions::default()).await.unwrap();
    assert!(matches!(plan, Plan::Install(notice) if notice.why == Why::OtherPackages));
    let new = ensure(&environments).await.unwrap();
    assert_ne!(new.python, old.python);
    files::create_dir_all(&machine.envs().join("source-0123456789abcdef/w")).unwrap();
    files::create_dir_all(&machine.envs().join(".part-x/y")).unwrap();
    files::create_dir_all(&machine.envs().join("0123456789abcdef")).unwrap(); // not ours
    files::create_dir_all(&machine.envs().join("photos")).unwrap();
    let info = environments.info().await;
    assert_eq!((info.state, info.others.len()), (EnvironmentState::Ready, 3), "{info:?}");
    assert_eq!(info.versions["msgspec"], "0.22.0");
    let pruned = environments.prune(true).await.unwrap();
    assert_eq!(pruned.removed, info.others);
    assert!(pruned.freed > Bytes(0));
    assert_eq!(environments.ready(), Some(new.clone()));
    let Origin::Managed { name } = new.origin else { panic!("ours") };
    let source = environments.source.folder(Path::new("")).display().to_string();
    let mut left =
        vec!["0123456789abcdef".to_string(), name, "lock".into(), "photos".into(), source];
    left.sort();
    assert_eq!(machine.in_envs(), left);
    environments.prune(false).await.unwrap();
    assert_eq!(machine.in_envs(), ["0123456789abcdef", "lock", "photos"]);
}

#[tokio::test]
async fn the_users_own_interpreter_is_checked_and_nothing_is_installed() {
    let machine = Machine::ordinary();
    let packages = r#""torch": "2.11.0+cu128", "diffusers": "0.40.0", "transformers": "5.0.0",
        "msgspec": "0.20.0", "google-crc32c": "1.8.0", "safetensors": "0.7.0", "numpy": "2.1.0""#;
    machine.python("mine", (3, 12, 3), false, &packages.replace('\n', ""));
    machine.python("bare", (3, 12, 3), false, "");
    let environments = machine.with_lock(REQUIREMENTS, Some(machine.at("bin/mine")));
    assert_eq!(environments.ready(), None);
    let interpreter = ensure(&environments).await.unwrap();
    assert_eq!(
        (&interpreter.origin, interpreter.python_version.as_str()),
        (&Origin::External, "3.12.3")
    );
    assert_eq!(environments.ready(), Some(interpreter));
    assert_eq!(environments.info().await.versions["torch"], "2.11.0+cu128");
    assert_eq!(machine.installations(), 0);

    let bare = machine.with_lock(REQUIREMENTS, Some(machine.at("bin/bare")));
    let error = ensure(&bare).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::EnvironmentBroken);
    let body = atelier_protocol::ErrorBody::from(error);
    assert_eq!(body.details.len(), lock::NEEDED.len(), "{body:?}");
    assert!(body.message.contains("msgspec is missing (tested: 0.22.0)"), "{body:?}");
    assert_eq!(bare.info().await.problems.len(), lock::NEEDED.len());

    let gone = machine.with_lock(REQUIREMENTS, Some(machine.at("bin/gone")));
    let error = ensure(&gone).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::EnvironmentPythonMissing);
}

/// With the registry that the README's commands need too: pip fetches uv, uv one small package of the real lock.
#[tokio::test]
async fn the_real_tools_make_an_environment_and_repair_a_damaged_one() {
    let machine = Machine::new();
    let embedded = Lock::embedded();
    let at = embedded.requirements.find("\nmsgspec==").expect("in the lock") + 1;
    let length = embedded.requirements[at..].find("    #").expect("a comment ends the entry");
    let requirements = embedded.requirements[at..at + length].to_string();
    let python = python::find(&real_path(), true).await.expect("Python 3.11 to 3.13 with venv");
    machine.program("python3", &format!("exec {} \"$@\"", python.executable.display()));
    let path = machine.at("bin").into_os_string();
    let config = EnvironmentConfig { envs: machine.envs(), python: None, path: path.clone() };
    let lock = Lock::new(requirements, embedded.installer.clone(), machine.facts.clone());
    let environments = Environments::with_lock(config, Clock::system(), lock);

    let lock_file = environments.take_lock(None).await.unwrap();
    uv::fetch(&python, &path, &machine.envs(), &embedded, &lock_file).await.unwrap();
    drop(lock_file);
    let uv = uv::private_folder(&machine.envs(), &embedded).join("bin/uv");
    // A cache of its own, since the files in it will be damaged.
    let cache = machine.at("cache").display().to_string();
    machine.program("uv", &format!("UV_CACHE_DIR={cache} exec {} \"$@\"", uv.display()));

    let interpreter = ensure(&environments).await.unwrap();
    let file = site_packages(&interpreter.python).join("msgspec/json.py");
    let bytecode = file.with_file_name("__pycache__");
    assert!(bytecode.exists(), "every worker start would compile it again");
    let good = files::read(&file).unwrap();
    let mut bad = good.clone();
    bad[0] ^= 1;
    // Written in place: it is the same file in uv's cache, so a repair must not trust that.
    std::io::Write::write_all(&mut files::create(&file).unwrap(), &bad).unwrap();
    let (repaired, events) =
        ensure_and_listen(&environments, InstallOptions { repair: true }).await;
    repaired.unwrap();
    assert_eq!(files::read(&file).unwrap(), good);
    let fetches = events.iter().filter(|e| **e == InstallEvent::Step(Step::Fetch)).count();
    assert_eq!(fetches, 2, "the damaged package is fetched again: {events:?}");
}

#[expect(clippy::disallowed_methods, reason = "the machine's own Python is what is tested")]
fn real_path() -> OsString {
    std::env::var_os("PATH").unwrap_or_default()
}

fn site_packages(python: &Path) -> PathBuf {
    let lib = python.parent().unwrap().parent().unwrap().join("lib");
    let versions = files::read_dir(&lib).unwrap();
    versions.iter().find(|p| p.to_string_lossy().contains("python3")).unwrap().join("site-packages")
}
