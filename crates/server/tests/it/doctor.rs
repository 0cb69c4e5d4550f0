//! `atelier doctor` on machines that lack something: each lack is named with its fix, and nothing is changed.

use crate::house::{House, until};
use atelier_testkit::{Script, ScriptedWorker};
use serde_json::Value;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// One finding: verdict, what was seen, the fix.
type Finding = (String, String, String);

/// What a run of the doctor found about one thing.
fn about(output: &Output, what: &str) -> Vec<Finding> {
    let findings: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| {
        panic!("no findings; stderr: {}", String::from_utf8_lossy(&output.stderr));
    });
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let all = findings.as_array().unwrap().iter().filter(|finding| finding["what"] == what);
    all.map(|f| (text(&f["verdict"]), text(&f["seen"]), text(&f["fix"]))).collect()
}

/// The only finding about something, which must have this verdict.
fn only(output: &Output, what: &str, verdict: &str) -> (String, String) {
    let found = about(output, what);
    let [(was, seen, fix)] = found.as_slice() else { panic!("{what}: {found:?}") };
    assert_eq!(was, verdict, "{what}: {seen}");
    (seen.clone(), fix.clone())
}

/// The doctor failed, as it must when pictures cannot be made.
fn alarmed(output: &Output) {
    assert_eq!(output.status.code(), Some(12), "{}", String::from_utf8_lossy(&output.stdout));
}

fn doctor(house: &House) -> Command {
    let mut command = house.command(&["doctor", "--json"]);
    command.stdin(Stdio::null());
    command
}

fn good() -> (ScriptedWorker, House) {
    let worker = ScriptedWorker::new([Script::good()]);
    let house = House::scripted(&worker);
    (worker, house)
}

/// Every path below a folder with its size and time of change.
fn everything(folder: &Path) -> Vec<(PathBuf, u64, std::time::SystemTime)> {
    let mut all = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let about = path.symlink_metadata().unwrap();
            if about.is_dir() {
                open.push(path.clone());
            }
            all.push((path, about.len(), about.modified().unwrap()));
        }
    }
    all.sort();
    all
}

#[test]
fn a_machine_in_order_is_told_so_and_left_as_it_was() {
    let (worker, house) = good();
    let data = house.data.path().join("later");
    let before = everything(house.data.path());
    let output = doctor(&house).env("ATELIER_DATA", &data).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    for what in ["machine", "shared memory", "clock", "data", "disk", "store", "node"] {
        let found = about(&output, what);
        assert!(!found.is_empty(), "nothing about {what}");
        assert!(found.iter().all(|(verdict, ..)| verdict != "bad"), "{found:?}");
    }
    assert!(about(&output, "device").iter().any(|(_, seen, _)| seen.starts_with("cpu: ")));
    assert!(about(&output, "models").iter().any(|(_, seen, _)| seen == "default: demo"));
    let (seen, _) = only(&output, "worker start", "good");
    assert!(seen.starts_with("ready in ") && seen.contains("fake scripted"), "{seen}");
    assert_eq!(worker.starts(), 1);
    assert_eq!(everything(house.data.path()), before, "the doctor changes nothing");
}

#[test]
fn beside_a_running_node_the_doctor_names_it_and_leaves_its_store_alone() {
    let (_worker, house) = good();
    let node = house.serve();
    let output = doctor(&house).arg("--no-worker-start").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let (seen, _) = only(&output, "node", "good");
    assert!(
        seen.contains(&node.address) && seen.contains(&node.process.id().to_string()),
        "{seen}"
    );
    assert!(only(&output, "store", "good").0.starts_with("in use"));
    assert!(only(&output, "worker start", "good").0.contains("--no-worker-start"));
    node.signal("TERM");
    let mut node = node;
    until("the node ends", || node.process.try_wait().unwrap());
    let before = everything(house.data.path());
    let output = doctor(&house).output().unwrap();
    assert!(only(&output, "store", "good").0.starts_with("sound; "));
    assert_eq!(everything(house.data.path()), before, "the doctor changes nothing");
}

#[test]
fn a_machine_without_python_is_told_which_to_install() {
    let house = House::real();
    let empty = house.data.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let output = doctor(&house)
        .env("PATH", &empty)
        .env("ATELIER_ENVS", house.data.path().join("envs"))
        .output()
        .unwrap();
    alarmed(&output);
    let (seen, fix) = only(&output, "python", "bad");
    assert!(seen.contains("no Python 3.11 to 3.13 was found"), "{seen}");
    assert!(fix.contains("install Python 3.11 to 3.13"), "{fix}");
    assert!(!house.data.path().join("envs").exists());
    // The same in words.
    let output =
        house.command(&["doctor"]).env("PATH", &empty).env("ATELIER_ENVS", &empty).output();
    let text = String::from_utf8(output.unwrap().stdout).unwrap();
    assert!(text.contains("BAD   python") && text.contains("fix: install Python"), "{text}");
}

#[test]
fn an_interpreter_of_ones_own_that_lacks_packages_is_told_all_of_them() {
    let house = House::real();
    let bare = house.data.path().join("python");
    std::fs::write(&bare, "#!/bin/sh\necho no >&2\nexit 1\n").unwrap();
    std::fs::set_permissions(&bare, std::fs::Permissions::from_mode(0o755)).unwrap();
    let output = doctor(&house).env("ATELIER_PYTHON", &bare).output().unwrap();
    alarmed(&output);
    let (seen, fix) = only(&output, "environment", "bad");
    assert!(seen.contains("does not run: no"), "{seen}");
    assert!(fix.contains("ATELIER_PYTHON"), "{fix}");
}

#[test]
fn a_full_disk_is_told_with_what_is_free() {
    let (_worker, house) = good();
    let output = house.run_on_a_full_disk(&["doctor", "--json"]).unwrap_or_else(|| {
        // /proc is a disk that never has a free page.
        eprintln!("no mount namespaces here; the full disk is /proc");
        doctor(&house).env("ATELIER_DATA", "/proc/sys").output().unwrap()
    });
    alarmed(&output);
    let (seen, fix) = only(&output, "disk", "bad");
    assert!(seen.starts_with("0 B free at "), "{seen}");
    assert!(fix.contains("free some space"), "{fix}");
}

#[test]
fn a_taken_port_is_told_with_its_holder() {
    let (_worker, house) = good();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = doctor(&house).env("ATELIER_LISTEN", &address).output().unwrap();
    assert!(output.status.success(), "`generate` takes any free port");
    let (seen, fix) = only(&output, "node", "note");
    let holder = format!("{address} is taken by ");
    assert!(seen.contains(&holder), "{seen}");
    assert!(seen.ends_with(&format!("(pid {})", std::process::id())), "{seen}");
    assert!(fix.contains("stop that program") && fix.contains("--listen"), "{fix}");
}

#[test]
fn a_model_folder_without_rights_is_told_with_its_path() {
    let (_worker, house) = good();
    let at = |name: &str| house.data.path().join(name);
    symlink(at("gone"), at("link")).unwrap();
    std::fs::write(at("file"), "").unwrap();
    std::fs::create_dir(at("locked")).unwrap();
    std::fs::set_permissions(at("locked"), std::fs::Permissions::from_mode(0o000)).unwrap();
    // Nothing is locked for root; a link to nowhere and a file in a folder's place stop everybody.
    let binding = std::fs::read_dir(at("locked")).is_err();
    let names: &[&str] = if binding { &["link", "file", "locked"] } else { &["link", "file"] };
    for name in names {
        let output = doctor(&house).env("ATELIER_MODELS", at(name)).output().unwrap();
        alarmed(&output);
        let found = about(&output, "models");
        let (_, seen, fix) = found.iter().find(|(verdict, ..)| verdict == "bad").unwrap();
        assert!(seen.contains(&*at(name).to_string_lossy()), "{seen}");
        assert!(fix.contains("model_folders"), "{fix}");
    }
    std::fs::set_permissions(at("locked"), std::fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn a_store_that_is_none_is_told_before_a_node_stumbles_over_it() {
    let (_worker, house) = good();
    std::fs::write(house.data.path().join("atelier.db"), [b'x'; 8192]).unwrap();
    let output = doctor(&house).output().unwrap();
    alarmed(&output);
    let (seen, fix) = only(&output, "store", "bad");
    assert!(seen.contains("atelier.db") && seen.contains("damaged"), "{seen}");
    assert!(fix.contains("backup"), "{fix}");
}

#[test]
fn a_worker_that_does_not_start_is_told_with_its_last_words() {
    let worker = ScriptedWorker::new([Script::good().hello("exit")]);
    let house = House::scripted(&worker);
    let output = doctor(&house).output().unwrap();
    alarmed(&output);
    let (seen, fix) = only(&output, "worker start", "bad");
    assert!(seen.contains("scripted: cannot go on"), "{seen}");
    assert!(!fix.is_empty());
    assert_eq!(worker.starts(), 1);
}

#[test]
fn a_clock_that_lags_behind_its_files_is_told() {
    let (_worker, house) = good();
    let file = std::fs::File::create(house.data.path().join("node.log")).unwrap();
    let tomorrow = std::time::SystemTime::now() + std::time::Duration::from_secs(86_400);
    file.set_modified(tomorrow).unwrap();
    let output = doctor(&house).output().unwrap();
    let (seen, fix) = only(&output, "clock", "note");
    assert!(seen.contains("node.log was changed at"), "{seen}");
    assert!(fix.contains("set the clock"), "{fix}");
}
