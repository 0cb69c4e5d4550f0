//! Errors as a user of the program meets them: a code of the table, its exit code, a sentence and a way out.

use crate::house::House;
use atelier_protocol::ErrorBody;
use atelier_testkit::{Script, ScriptedWorker};
use std::process::{Output, Stdio};

/// The error that a command with `--json` ended with, whose exit code must be that of its row.
fn error(output: &Output) -> ErrorBody {
    let stderr = String::from_utf8_lossy(&output.stderr);
    let last = stderr.lines().last().unwrap_or_default();
    let value: serde_json::Value =
        serde_json::from_str(last).unwrap_or_else(|_| panic!("no error in: {stderr}"));
    let error: ErrorBody = serde_json::from_value(value["error"].clone()).unwrap();
    assert_eq!(output.status.code(), Some(i32::from(error.code.row().exit)), "{error}");
    assert!(!error.hint.is_empty(), "{error}");
    error
}

fn house() -> (ScriptedWorker, House) {
    let worker = ScriptedWorker::new([Script::good()]);
    let house = House::scripted(&worker);
    (worker, house)
}

#[test]
fn a_setting_that_cannot_be_ends_every_command_with_its_place() {
    let (_worker, house) = house();
    let file = house.data.path().join("atelier.toml");
    std::fs::write(&file, "[log]\nlevel = \"info\"\nlevle = 3\n\n[worker]\npython = 3\n").unwrap();
    for args in [["config", "show"], ["jobs", "list"]] {
        let error = error(&house.command(&args).arg("--json").output().unwrap());
        assert_eq!(error.code.word(), "config.invalid");
        let details: Vec<_> = error.details.iter().map(|detail| detail.message.as_str()).collect();
        let at = file.display();
        assert_eq!(
            details,
            [
                format!("{at}, line 3: `log.levle` is no setting; did you mean `log.level`?"),
                format!("{at}, line 6: `worker.python` is a number, not a path in quotes"),
            ]
        );
    }
}

#[test]
fn a_node_that_is_not_there_is_unreachable() {
    let (_worker, house) = house();
    let named = house.run(&["devices", "--json", "--node", "http://127.0.0.1:9"]);
    assert_eq!(error(&named).code.word(), "node.unreachable");
    let unnamed = error(&house.run(&["jobs", "list", "--json"]));
    assert_eq!(unnamed.code.word(), "node.unreachable");
    let data = house.data.path().to_string_lossy().into_owned();
    assert!(unnamed.message.contains(&data), "{unnamed}");
}

#[test]
fn without_python_the_first_picture_says_what_to_install() {
    let house = House::real();
    let empty = house.data.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let mut command = house.command(&["generate", "a red apple", "--json"]);
    let command = command.env("PATH", &empty).env("ATELIER_ENVS", house.data.path().join("envs"));
    let error = error(&command.stdin(Stdio::null()).output().unwrap());
    assert_eq!(error.code.word(), "environment.python_missing");
    assert!(error.hint.contains("ATELIER_PYTHON"), "{error:?}");
}

#[test]
fn an_interpreter_of_ones_own_that_lacks_packages_is_broken() {
    let house = House::real();
    // This machine's own Python runs the scripted worker and has no PyTorch, or an incomplete set of the rest.
    let python = std::process::Command::new("python3")
        .args(["-c", "import sys; print(sys.executable)"])
        .output()
        .unwrap();
    let python = String::from_utf8(python.stdout).unwrap();
    let bare = house.data.path().join("bare");
    let made = std::process::Command::new(python.trim())
        .args(["-m", "venv", "--without-pip"])
        .arg(&bare)
        .status()
        .unwrap();
    assert!(made.success());
    let mut command = house.command(&["worker", "install", "--json"]);
    let error = error(&command.env("ATELIER_PYTHON", bare.join("bin/python")).output().unwrap());
    assert_eq!(error.code.word(), "environment.broken");
    assert!(error.message.contains("torch is missing"), "{error}");
    assert!(error.details.len() > 3, "all that is missing is told: {error:?}");
}

#[test]
fn a_store_that_is_none_is_corrupt() {
    let (_worker, house) = house();
    std::fs::write(house.data.path().join("atelier.db"), [b'x'; 8192]).unwrap();
    let error = error(&house.run(&["serve", "--listen", "127.0.0.1:0", "--json"]));
    assert_eq!(error.code.word(), "store.corrupt");
}

#[test]
fn a_node_on_a_full_disk_says_so() {
    let (_worker, house) = house();
    let args = ["serve", "--listen", "127.0.0.1:0", "--json"];
    match house.run_on_a_full_disk(&args) {
        Some(output) => assert_eq!(error(&output).code.word(), "store.full"),
        // Without a disk to fill this is left to the store's own test, which has a smaller one.
        None => eprintln!("no mount namespaces here"),
    }
}
