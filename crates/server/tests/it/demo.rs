//! The demo model through the real worker: pixels, not promises. The worker environment is installed at the first need.

use crate::house::{House, is_alive, pixels, signal, stdout_paths, until};
use atelier_testkit::repository;
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const APPLE: &str = "a 3d render of a red apple on a blue background";

fn at(pixels: &[u8], x: usize, y: usize) -> [i32; 3] {
    let i = (y * 128 + x) * 3;
    [pixels[i].into(), pixels[i + 1].into(), pixels[i + 2].into()]
}

fn mean(points: impl Iterator<Item = [i32; 3]>) -> [f64; 3] {
    let mut sum = [0.0; 3];
    let mut count = 0.0;
    for point in points {
        for (sum, value) in sum.iter_mut().zip(point) {
            *sum += f64::from(value);
        }
        count += 1.0;
    }
    sum.map(|sum| sum / count)
}

#[test]
fn the_readmes_apple_is_red_on_blue_over_eight_seeds() {
    let house = House::real();
    let out = format!("{}/apples/", house.data.path().display());
    let output = house.run(&["generate", APPLE, "--seed", "0", "--count", "8", "--out", &out]);
    let paths = stdout_paths(&output);
    assert_eq!(paths.len(), 8);
    for path in paths {
        let (width, height, pixels) = pixels(&path);
        assert_eq!((width, height), (128, 128));
        let edge = |v: usize| !(6..122).contains(&v);
        let all = (0..128).flat_map(|y| (0..128).map(move |x| (x, y)));
        let border = mean(all.filter(|&(x, y)| edge(x) || edge(y)).map(|(x, y)| at(&pixels, x, y)));
        for (value, wanted) in border.iter().zip([40.0, 90.0, 220.0]) {
            assert!((value - wanted).abs() <= 20.0, "{}: border is {border:?}", path.display());
        }
        let middle = (48..80).flat_map(|y| (48..80).map(move |x| (x, y)));
        let [r, g, b] = mean(middle.map(|(x, y)| at(&pixels, x, y)));
        assert!(r - g.max(b) >= 80.0, "{}: middle is {r} {g} {b}", path.display());
    }
}

#[test]
fn pixels_repeat_differ_by_seed_and_are_those_of_a_bare_diffusers_script() {
    let house = House::real();
    let node = house.serve();
    let draw = |name: &str| {
        let out = house.data.path().join(name);
        let out = out.to_str().unwrap();
        let output = house.run(&["generate", "a strawberry", "--seed", "3", "--out", out]);
        stdout_paths(&output).remove(0)
    };
    let (first, second) = (draw("one.png"), draw("two.png"));
    assert_eq!(pixels(&first), pixels(&second), "the same request gives the same pixels");

    let out = format!("{}/four/", house.data.path().display());
    let four =
        house.run(&["generate", "a strawberry", "--count", "4", "--seed", "3", "--out", &out]);
    let four = stdout_paths(&four);
    let all: Vec<_> = four.iter().map(|path| pixels(path)).collect();
    assert_eq!(all[0], pixels(&first), "picture 0 of four is the picture of its seed");
    for (i, one) in all.iter().enumerate() {
        assert!(!all[..i].contains(one), "picture {i} is there twice");
    }

    let job = node.get("/v1/jobs?limit=1").json()["data"][0].clone();
    let numerics = node.get("/v1/devices/cpu").json()["capabilities"]["numerics"].clone();
    let bare = house.data.path().join("bare.png");
    bare_diffusers(&house, &job["request"], &numerics, &bare);
    let (_, _, ours) = pixels(&first);
    let (_, _, theirs) = pixels(&bare);
    let largest = ours.iter().zip(&theirs).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
    assert!(largest <= 1, "the largest difference is {largest}/255");
}

/// The reference: diffusers' own pipeline with the same settings, in the same environment.
fn bare_diffusers(house: &House, request: &Value, numerics: &Value, out: &Path) {
    let info = house.run(&["worker", "info", "--json"]);
    let info: Value = serde_json::from_slice(&info.stdout).unwrap();
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let output = Command::new(info["python"].as_str().unwrap())
        .arg(repository().join("bench/demo/bare_diffusers.py"))
        .arg(repository().join("models/demo"))
        .args(["--prompt", request["prompt"].as_str().unwrap()])
        .args(["--seed", "3", "--steps", &text(&request["steps"])])
        .args(["--guidance", &text(&request["guidance_scale"])])
        .args(["--width", &text(&request["width"]), "--height", &text(&request["height"])])
        .args(["--dtype", &text(&numerics["dtype"]), "--threads", &text(&numerics["threads"])])
        .args(["--memory-format", &text(&numerics["memory_format"])])
        .args(["--repeats", "1", "--png", out.to_str().unwrap()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_worker_killed_while_it_draws_costs_an_attempt_and_the_pixels_are_the_same() {
    let house = House::real();
    let node = house.serve();
    let body = json!({"kind": "text_to_image", "prompt": "a strawberry", "seed": 3});
    let calm = node.ended(&node.submit(&body));
    let job = node.submit(&body);
    node.job_when(&job, |job| job["progress"]["step"].as_u64() >= Some(3));
    signal(node.worker_pid(), "KILL");
    let job = node.ended(&job);
    assert_eq!(job["state"], "succeeded", "{job}");
    assert_eq!(job["attempts"].as_array().unwrap().len(), 2, "{}", job["attempts"]);
    let picture = |job: &Value| node.get(job["artifacts"][0]["url"].as_str().unwrap()).bytes;
    let read = |name: &str, bytes: &[u8]| {
        let path = house.data.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        pixels(&path)
    };
    assert_eq!(read("calm.png", &picture(&calm)), read("killed.png", &picture(&job)));
}

#[test]
fn a_killed_node_leaves_no_worker_behind_and_the_job_completes() {
    let house = House::real();
    let mut node = house.serve();
    // Steps at the largest size are the longest calls into C that the demo model makes.
    let body = json!({
        "kind": "text_to_image", "prompt": "a strawberry", "width": 256, "height": 256, "steps": 8,
    });
    let job = node.submit(&body);
    node.job_when(&job, |job| job["progress"]["step"].as_u64() >= Some(1));
    let pid = node.worker_pid();
    node.signal("KILL");
    let killed = Instant::now();
    node.process.wait().unwrap();
    until("the worker is gone", || (!is_alive(pid)).then_some(()));
    // A promise to users, with its limit: nobody else's memory may be held by an orphan.
    assert!(killed.elapsed() < Duration::from_secs(2), "the worker lived on");
    let node = house.serve();
    let job = node.ended(&job);
    assert_eq!(job["state"], "succeeded", "{job}");
}
