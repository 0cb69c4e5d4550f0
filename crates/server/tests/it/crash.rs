//! Processes that are killed at the worst moment, with the scripted worker.

use crate::house::{House, is_alive, signal, until};
use atelier_testkit::{Script, ScriptedWorker};
use serde_json::json;
use std::process::Stdio;

#[test]
fn a_killed_node_finishes_its_job_under_the_same_id_after_the_next_start() {
    let worker = ScriptedWorker::new([Script::good().freeze_at(2), Script::good()]);
    let house = House::scripted(&worker);
    let mut node = house.serve();
    let body = json!({"kind": "text_to_image", "prompt": "a red apple", "steps": 4});
    let job = node.submit(&body);
    node.job_when(&job, |job| job["progress"]["step"].as_u64() > Some(0));
    let waiting = node.submit(&body);
    let pid = node.worker_pid();
    node.signal("KILL");
    node.process.wait().unwrap();
    until("the worker is gone with its node", || (!is_alive(pid)).then_some(()));
    let node = house.serve();
    for job in [&job, &waiting] {
        let ended = node.ended(job);
        assert_eq!(ended["state"], "succeeded", "{ended}");
        assert_eq!(ended["artifacts"].as_array().unwrap().len(), 1);
    }
    let attempts = node.job(&job)["attempts"].clone();
    assert_eq!(attempts[0]["outcome"], "lost", "{attempts}");
    assert_eq!(attempts[1]["outcome"], "succeeded", "{attempts}");
    assert_eq!(node.job(&waiting)["attempts"].as_array().unwrap().len(), 1);
}

#[test]
fn a_worker_killed_from_outside_costs_an_attempt() {
    let worker = ScriptedWorker::new([Script::good().freeze_at(2), Script::good()]);
    let house = House::scripted(&worker);
    let node = house.serve();
    let job = node.submit(&json!({"kind": "text_to_image", "prompt": "a red apple", "steps": 4}));
    node.job_when(&job, |job| job["progress"]["step"].as_u64() > Some(0));
    signal(node.worker_pid(), "KILL");
    let job = node.ended(&job);
    assert_eq!(job["state"], "succeeded", "{job}");
    assert_eq!(job["attempts"][0]["cause"]["code"], "worker.crashed");
    assert_eq!(job["attempts"].as_array().unwrap().len(), 2);
}

#[test]
fn sigterm_ends_the_node_in_order_and_takes_its_worker_along() {
    let worker = ScriptedWorker::new([Script::good().freeze_at(2), Script::good()]);
    let house = House::scripted(&worker);
    let mut node = house.serve();
    let job = node.submit(&json!({"kind": "text_to_image", "prompt": "a red apple", "steps": 4}));
    node.job_when(&job, |job| job["progress"]["step"].as_u64() > Some(0));
    let pid = node.worker_pid();
    node.signal("TERM");
    assert!(node.process.wait().unwrap().success());
    assert!(!is_alive(pid));
    assert!(!house.data.path().join("node.json").exists());
    let node = house.serve();
    assert_eq!(node.ended(&job)["state"], "succeeded");
}

#[test]
fn two_nodes_never_share_a_data_folder_or_an_address() {
    let worker = ScriptedWorker::new([Script::good()]);
    let house = House::scripted(&worker);
    let node = house.serve();
    let second = house.run(&["serve", "--listen", "127.0.0.1:0"]);
    assert_eq!(second.status.code(), Some(11), "{}", String::from_utf8_lossy(&second.stderr));
    let pid = node.process.id().to_string();
    assert!(String::from_utf8_lossy(&second.stderr).contains(&pid));
    let other = House::scripted(&worker);
    let second = other.run(&["serve", "--listen", &node.address]);
    assert_eq!(second.status.code(), Some(13), "{}", String::from_utf8_lossy(&second.stderr));
    assert!(String::from_utf8_lossy(&second.stderr).contains(&pid));
}

#[test]
fn a_client_sees_only_latency_when_the_worker_dies() {
    let worker = ScriptedWorker::new([Script::good().crash_at(3), Script::good()]);
    let house = House::scripted(&worker);
    let node = house.serve();
    let output = house
        .command(&["generate", "a red apple", "--steps", "4", "--seed", "1", "--out", "a.png"])
        .args(["--node", &format!("http://{}", node.address)])
        .current_dir(house.data.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
