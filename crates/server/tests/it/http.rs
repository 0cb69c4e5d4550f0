//! The HTTP API over a real connection.

use crate::house::{House, Node};
use atelier_testkit::{Script, ScriptedWorker};
use serde_json::{Value, json};

fn apple() -> Value {
    json!({"kind": "text_to_image", "prompt": "a red apple", "steps": 4, "seed": 5})
}

fn with_node(scripts: impl IntoIterator<Item = Script>, test: impl FnOnce(&House, &Node)) {
    let worker = ScriptedWorker::new(scripts);
    let house = House::scripted(&worker);
    let node = house.serve();
    test(&house, &node);
    let log = house.log();
    assert!(!log.contains("a red apple"), "a prompt is in the log:\n{log}");
}

#[test]
fn a_submission_is_accepted_with_its_place_and_can_be_waited_for() {
    with_node([Script::good()], |_, node| {
        let answer = node.post("/v1/jobs", &apple(), &[]);
        assert_eq!(answer.status, 202);
        let id = answer.json()["id"].as_str().unwrap().to_owned();
        assert_eq!(answer.header("location"), Some(format!("/v1/jobs/{id}").as_str()));
        let answer = node.post("/v1/jobs", &apple(), &[("Prefer", "wait=60")]);
        assert_eq!(answer.status, 200);
        let job = answer.json();
        assert_eq!(job["state"], "succeeded", "{job}");
        assert_eq!(job["request"]["guidance_scale"], 4.0, "every default is filled in");
        let list = node.get("/v1/jobs?limit=1").json();
        assert_eq!(list["data"][0]["id"], job["id"]);
        let next = list["next"].as_str().unwrap();
        let rest = node.get(&format!("/v1/jobs?limit=1&cursor={next}")).json();
        assert_eq!(rest["data"][0]["id"], id.as_str());
    });
}

#[test]
fn a_picture_is_served_by_its_id_and_only_sent_again_when_it_changed() {
    with_node([Script::good()], |_, node| {
        let job = node.ended(&node.submit(&apple()));
        let artifact = &job["artifacts"][0];
        let url = artifact["url"].as_str().unwrap();
        let answer = node.get(url);
        assert_eq!(answer.header("content-type"), Some("image/png"));
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(answer.bytes.len() as u64, artifact["bytes"].as_u64().unwrap());
        let tag = answer.header("etag").unwrap();
        assert!(tag.contains(artifact["blake3"].as_str().unwrap()));
        assert_eq!(node.request("GET", url, &[("If-None-Match", tag)], b"").status, 304);
    });
}

#[test]
fn events_are_sent_as_they_happen_resume_by_id_and_end() {
    with_node([Script::good().step_ms(5)], |_, node| {
        let job = node.submit(&apple());
        let url = format!("/v1/jobs/{}/events", job["id"].as_str().unwrap());
        let all = String::from_utf8(node.get(&url).bytes).unwrap();
        for event in ["state", "progress", "artifact", "end"] {
            assert!(all.contains(&format!("event: {event}")), "{event} is missing in\n{all}");
        }
        let ids: Vec<u64> = all
            .lines()
            .filter_map(|line| line.strip_prefix("id: "))
            .map(|id| id.parse().unwrap())
            .collect();
        assert!(ids.is_sorted(), "{ids:?}");
        let after = ids[ids.len() - 2].to_string();
        let rest = node.request("GET", &url, &[("Last-Event-ID", &after)], b"");
        let rest = String::from_utf8(rest.bytes).unwrap();
        assert!(rest.contains("event: end") && !rest.contains("event: artifact"), "{rest}");
    });
}

#[test]
fn an_idempotency_key_makes_one_job() {
    with_node([Script::good()], |_, node| {
        let key = [("Idempotency-Key", "k1")];
        let first = node.post("/v1/jobs", &apple(), &key);
        let again = node.post("/v1/jobs", &apple(), &key);
        assert_eq!(first.json()["id"], again.json()["id"]);
        assert_eq!(again.header("idempotent-replayed"), Some("true"));
        let other = node.post("/v1/jobs", &json!({"kind": "text_to_image", "prompt": "b"}), &key);
        assert_eq!((other.status, other.code().as_str()), (409, "processing.conflict"));
    });
}

#[test]
fn a_job_is_cancelled_once_and_its_end_is_final() {
    with_node([Script::good().step_ms(50)], |_, node| {
        let mut long = apple();
        long["steps"] = json!(100);
        let job = node.submit(&long);
        node.job_when(&job, |job| job["progress"]["step"].as_u64() > Some(0));
        let cancel = format!("/v1/jobs/{}/cancel", job["id"].as_str().unwrap());
        let answer = node.request("POST", &cancel, &[], b"");
        assert!([200, 202].contains(&answer.status), "{}", answer.status);
        assert_eq!(node.ended(&job)["state"], "cancelled");
        let answer = node.request("POST", &cancel, &[], b"");
        assert_eq!((answer.status, answer.code().as_str()), (409, "processing.conflict"));
    });
}

#[test]
fn whatever_is_wrong_with_a_request_has_one_shape_a_code_and_a_status() {
    with_node([Script::good()], |_, node| {
        let json = ("Content-Type", "application/json");
        let good = apple().to_string();
        let large = vec![b' '; 9 << 20];
        let unknown_id = "/v1/jobs/018f0000-0000-7000-8000-000000000000";
        type Headers = Vec<(&'static str, &'static str)>;
        type Case<'a> = (&'a str, &'a str, Headers, &'a [u8], u16, &'a str);
        let cases: Vec<Case<'_>> = vec![
            ("POST", "/v1/jobs", vec![json], b"{", 400, "request.invalid"),
            ("POST", "/v1/jobs", vec![json], b"[]", 400, "request.invalid"),
            ("POST", "/v1/jobs", vec![json], b"{}", 422, "inference.invalid"),
            ("POST", "/v1/jobs", vec![json], br#"{"cfg_scale": 1}"#, 400, "request.invalid"),
            ("POST", "/v1/jobs", vec![json], &large, 413, "request.too_large"),
            (
                "POST",
                "/v1/jobs",
                vec![("Content-Type", "text/plain")],
                good.as_bytes(),
                403,
                "request.forbidden",
            ),
            (
                "POST",
                "/v1/jobs",
                vec![json, ("Origin", "https://evil.example")],
                good.as_bytes(),
                403,
                "request.forbidden",
            ),
            ("GET", "/v1/jobs", vec![("Host", "evil.example")], b"", 403, "request.forbidden"),
            ("GET", "/v1/jobs?state=done", vec![], b"", 400, "request.invalid"),
            ("GET", "/v1/jobs?cursor=zz", vec![], b"", 400, "request.invalid"),
            ("GET", "/v1/jobs/not-an-id", vec![], b"", 404, "processing.not_found"),
            ("GET", unknown_id, vec![], b"", 404, "processing.not_found"),
            ("GET", "/v1/artifacts/..%2f..%2fetc", vec![], b"", 404, "artifact.not_found"),
            ("GET", "/v1/devices/cuda:9", vec![], b"", 404, "device.not_found"),
            ("GET", "/v1/models/nothing", vec![], b"", 404, "model.not_found"),
            ("GET", "/v1/nothing", vec![], b"", 404, "request.not_found"),
            ("DELETE", "/v1/node", vec![], b"", 405, "request.not_found"),
        ];
        for (method, path, headers, body, status, code) in cases {
            let answer = node.request(method, path, &headers, body);
            let shown = String::from_utf8_lossy(&body[..body.len().min(40)]).into_owned();
            assert_eq!(
                (answer.status, answer.code().as_str()),
                (status, code),
                "{method} {path} {headers:?} {shown}"
            );
            assert!(answer.header("x-request-id").is_some());
        }
    });
}

#[test]
fn the_facts_of_the_node_are_there() {
    with_node([Script::good()], |house, node| {
        assert_eq!(node.get("/livez").status, 200);
        crate::house::until("the worker is ready", || {
            (node.get("/readyz").status == 200).then_some(())
        });
        let info = node.get("/v1/node").json();
        assert_eq!(info["pid"], node.process.id());
        let file = std::fs::read_to_string(house.data.path().join("node.json")).unwrap();
        let file: Value = serde_json::from_str(&file).unwrap();
        assert_eq!(file["boot_id"], info["boot_id"]);
        assert_eq!(file["address"], node.address.as_str());
        assert_eq!(node.get("/v1/devices/cpu").json()["kind"], "cpu");
        assert!(node.get("/v1/memory/cpu").json()["total_bytes"].as_u64() > Some(0));
        let models = node.get("/v1/models").json();
        assert_eq!(models["object"], "list");
        assert_eq!(models["data"][0]["id"], "demo");
        assert_eq!(models["data"][0]["object"], "model");
        let capabilities = node.get("/v1/capabilities").json();
        assert_eq!(capabilities["kinds"], json!(["text_to_image"]));
        let validation = node.post("/v1/jobs/validate", &apple(), &[]).json();
        assert_eq!(validation["valid"], true);
        assert_eq!(node.get("/v1/jobs").json()["data"], json!([]), "a dry run leaves no job");
    });
}
