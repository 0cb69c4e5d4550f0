//! `atelier generate` and the other commands, with the scripted worker.

use crate::house::{House, pixels, stdout_paths, texts, until};
use atelier_testkit::{Script, ScriptedWorker};
use serde_json::Value;

fn house() -> (ScriptedWorker, House) {
    let worker = ScriptedWorker::new([Script::good()]);
    let house = House::scripted(&worker);
    (worker, house)
}

fn stderr(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn without_a_node_one_is_started_for_the_call_and_ends_with_it() {
    let (_worker, house) = house();
    let out = house.data.path().join("apple.png");
    let out = out.to_str().unwrap();
    let output =
        house.run(&["generate", "a red apple", "--seed", "7", "--steps", "3", "--out", out]);
    assert_eq!(stdout_paths(&output), [std::path::Path::new(out)]);
    assert!(!house.data.path().join("node.json").exists(), "the node ended with the call");
    let (width, height, _) = pixels(out.as_ref());
    assert_eq!((width, height), (128, 128));
    let texts = texts(out.as_ref());
    let parameters = &texts.iter().find(|(k, _)| k == "parameters").unwrap().1;
    assert!(parameters.starts_with("a red apple\nSteps: 3, Sampler: DDIM"), "{parameters}");
    assert!(parameters.contains("CFG scale: 4, Seed: 7, Size: 128x128, Model hash: "));
    let bundle = &texts.iter().find(|(k, _)| k == "atelier").unwrap().1;
    let bundle: Value = serde_json::from_str(bundle).unwrap();
    assert_eq!(bundle["request"]["seed"], 7);
    assert_eq!(bundle["noise_source"], "torch_cpu");
    assert_eq!(bundle["versions"]["fake"], "scripted");
    assert!(bundle["numerics"]["dtype"].is_string() && bundle["batch"]["size"] == 1);
    let data = house.data.path().to_str().unwrap();
    assert!(!bundle.to_string().contains(data), "no path is in a picture");
}

#[test]
fn pictures_are_named_by_time_words_and_seed_and_never_overwrite() {
    let (_worker, house) = house();
    let node = house.serve();
    for _ in 0..2 {
        let output = house.run(&["generate", "a red apple!", "--seed", "7", "--steps", "2"]);
        let path = &stdout_paths(&output)[0];
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(name.contains("a-red-apple-7"), "{name}");
        assert!(path.starts_with(house.data.path().join("pictures")));
    }
    let folder = house.data.path().join("many/");
    let folder = format!("{}/", folder.display());
    let args = ["generate", "a red apple", "--count", "3", "--steps", "2", "--out", &folder];
    assert_eq!(stdout_paths(&house.run(&args)).len(), 3);
    drop(node);
}

#[test]
fn errors_say_what_where_and_a_way_out_with_the_exit_code_of_the_table() {
    let (_worker, house) = house();
    let node = house.serve();
    let cases: [(&[&str], i32, &str); 6] = [
        (&["generate", "x", "--size", "100x100"], 3, "steps of 16"),
        (&["generate", "x", "--model", "dmo"], 6, "demo"),
        (&["generate", "x", "--scheduler", "best"], 3, "ddim"),
        (&["generate", "x", "--out", "/nowhere/at/all/a.png"], 9, "/nowhere/at/all"),
        (&["jobs", "show", "018f0000-0000-7000-8000-000000000000"], 7, "no job"),
        (&["generate", "x", "--device", "cuda:7"], 3, "cuda:7"),
    ];
    for (args, exit, word) in cases {
        let output = house.run(args);
        assert_eq!(output.status.code(), Some(exit), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(word), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains("Try: "), "{args:?}: {}", stderr(&output));
    }
    assert!(node.get("/v1/jobs").json()["data"].as_array().unwrap().is_empty());
}

#[test]
fn json_tells_each_event_on_a_line_and_a_dry_run_draws_nothing() {
    let (_worker, house) = house();
    let node = house.serve();
    let output = house.run(&["generate", "a red apple", "--steps", "3", "--json"]);
    let lines = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let events: Vec<_> = lines.iter().map(|line| line["event"].as_str().unwrap()).collect();
    assert!(events.contains(&"progress") && events.contains(&"end"), "{events:?}");
    assert_eq!(events.last(), Some(&"saved"));
    let before = node.get("/v1/jobs").json();
    let output = house.run(&["generate", "a photorealistic apple", "--dry-run"]);
    assert!(output.status.success());
    assert!(stderr(&output).contains("photorealistic"), "unknown words are named");
    assert_eq!(node.get("/v1/jobs").json(), before);
}

#[test]
fn the_lists_of_the_command_line_answer_in_text_and_json() {
    let (_worker, house) = house();
    let node = house.serve();
    let job = node.submit(&serde_json::json!({"kind": "text_to_image", "prompt": "a red apple"}));
    node.ended(&job);
    let id = job["id"].as_str().unwrap();
    for args in [
        vec!["devices"],
        vec!["devices", "show", "cpu"],
        vec!["memory"],
        vec!["models", "list"],
        vec!["models", "show", "demo"],
        vec!["capabilities"],
        vec!["jobs", "list"],
        vec!["jobs", "show", id],
        vec!["jobs", "watch", id],
        vec!["config", "show"],
        vec!["worker", "info"],
    ] {
        let text = house.run(&args);
        assert!(text.status.success(), "{args:?}: {}", stderr(&text));
        assert!(!text.stdout.is_empty(), "{args:?}");
        let mut with_json = args.clone();
        with_json.push("--json");
        let json = house.run(&with_json);
        let last = String::from_utf8(json.stdout).unwrap();
        let last = last.lines().last().unwrap().to_owned();
        serde_json::from_str::<Value>(&last).unwrap_or_else(|_| panic!("{args:?}: {last}"));
    }
    let doctor = house.run(&["doctor"]);
    assert!(doctor.status.success(), "{}", String::from_utf8_lossy(&doctor.stdout));
}

#[test]
fn an_idle_node_ends_by_itself() {
    let (_worker, house) = house();
    let mut node = house.serve_with(&["--idle-exit", "1"]);
    let status = until("the node ends", || node.process.try_wait().unwrap());
    assert!(status.success());
}
