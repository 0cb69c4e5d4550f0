//! A small client of the HTTP API. Plain HTTP, no proxy, no redirects: a node listens on this machine only.

use super::sse::{Parser, Received};
use crate::http::HEARTBEAT;
use atelier_protocol::http::ErrorEnvelope;
use atelier_protocol::{ErrorBody, ErrorCode};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::time::Duration;
use ureq::http::Response;
use ureq::{Agent, Body};

const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// Largest answer that is read as JSON.
const MAX_JSON_BYTES: u64 = 64 << 20;

/// Talks to one node.
#[derive(Clone, Debug)]
pub(super) struct Client {
    agent: Agent,
    base: String,
}

impl Client {
    /// `address` is a URL (`http://HOST:PORT`) or what would stand behind its `http://`.
    pub(super) fn new(address: &str) -> Result<Self, ErrorBody> {
        let base = base_of(address).map_err(|problem| {
            let message = format!("`{address}` is no address of a node: {problem}");
            ErrorBody::new(ErrorCode::ConfigInvalid, message)
        })?;
        let agent = Agent::config_builder()
            .proxy(None)
            .max_redirects(0)
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT_LIMIT))
            // A stream that is silent for three heartbeats is dead.
            .timeout_per_read(Some(HEARTBEAT * 3))
            .build()
            .new_agent();
        Ok(Self { agent, base })
    }

    pub(super) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ErrorBody> {
        let response = self.agent.get(self.url(path)).call();
        self.json(response)
    }

    pub(super) fn get_with<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
    ) -> Result<T, ErrorBody> {
        let pairs = query.iter().map(|(name, value)| (*name, value.as_str()));
        let response = self.agent.get(self.url(path)).query_pairs(pairs).call();
        self.json(response)
    }

    pub(super) fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &Value,
        headers: &[(&str, &str)],
    ) -> Result<T, ErrorBody> {
        let mut request = self.agent.post(self.url(path)).content_type("application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send(body.to_string());
        self.json(response)
    }

    /// The bytes behind a path, exactly as many as expected.
    pub(super) fn bytes(&self, path: &str, expected: u64) -> Result<Vec<u8>, ErrorBody> {
        let response = self.checked(self.agent.get(self.url(path)).call())?;
        let mut bytes = Vec::new();
        let read = response.into_body().into_reader().take(expected + 1).read_to_end(&mut bytes);
        match read {
            Ok(length) if length as u64 == expected => Ok(bytes),
            Ok(length) => Err(self.unreachable(&format!("sent {length} bytes, not {expected}"))),
            Err(error) => Err(self.unreachable(&error.to_string())),
        }
    }

    /// A stream of events, after an id.
    pub(super) fn events(&self, path: &str, after: Option<u64>) -> Result<Events, ErrorBody> {
        let mut request = self.agent.get(self.url(path)).header("accept", "text/event-stream");
        if let Some(after) = after {
            request = request.header("last-event-id", after.to_string());
        }
        let response = self.checked(request.call())?;
        let reader: Box<dyn Read> = Box::new(response.into_body().into_reader());
        Ok(Events { lines: BufReader::new(reader), parser: Parser::default() })
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    fn json<T: DeserializeOwned>(
        &self,
        response: Result<Response<Body>, ureq::Error>,
    ) -> Result<T, ErrorBody> {
        let mut response = self.checked(response)?;
        response.body_mut().with_config().limit(MAX_JSON_BYTES).read_json().map_err(|error| {
            self.unreachable(&format!("answered with something unexpected: {error}"))
        })
    }

    /// The answer, or the error that it is.
    fn checked(
        &self,
        response: Result<Response<Body>, ureq::Error>,
    ) -> Result<Response<Body>, ErrorBody> {
        let mut response = response.map_err(|error| self.unreachable(&error.to_string()))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let text = response.body_mut().with_config().limit(MAX_JSON_BYTES).read_to_string();
        Err(text.ok().and_then(|text| error_in(&text)).unwrap_or_else(|| {
            self.unreachable(&format!("answers with status {status}, but not as a node does"))
        }))
    }

    fn unreachable(&self, problem: &str) -> ErrorBody {
        let message = format!("failed to talk to a node at {}: {problem}", self.base);
        ErrorBody::new(ErrorCode::NodeUnreachable, message)
    }
}

/// The error in an answer's text. A code of a newer version is not in our table, but its message is still worth showing.
fn error_in(text: &str) -> Option<ErrorBody> {
    if let Ok(envelope) = serde_json::from_str::<ErrorEnvelope>(text) {
        return Some(envelope.error);
    }
    let value: Value = serde_json::from_str(text).ok()?;
    let error = value.get("error")?;
    let (code, message) = (error.get("code")?.as_str()?, error.get("message")?.as_str()?);
    let hint = error.get("hint").and_then(Value::as_str).unwrap_or_default();
    Some(ErrorBody::new(ErrorCode::Internal, format!("{message} ({code})")).with_hint(hint))
}

/// The part of a URL before the path.
fn base_of(address: &str) -> Result<String, String> {
    let rest = match address.split_once("://") {
        Some(("http", rest)) => rest,
        Some((scheme, _)) => return Err(format!("{scheme} is not spoken, only http")),
        None => address,
    };
    let rest = rest.trim_end_matches('/');
    if rest.is_empty() || rest.contains(['/', '?', '#', '@', ' ']) {
        return Err("a host and a port are needed, such as 127.0.0.1:4280".to_owned());
    }
    Ok(format!("http://{rest}"))
}

/// A part of a path as it must be written in a URL.
pub(super) fn segment(text: &str) -> String {
    let mut written = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~:".contains(&byte) {
            written.push(char::from(byte));
        } else {
            written.push_str(&format!("%{byte:02X}"));
        }
    }
    written
}

/// Events as they arrive. Ends when the stream does, whether it was meant to or broke.
pub(super) struct Events {
    lines: BufReader<Box<dyn Read>>,
    parser: Parser,
}

impl Iterator for Events {
    type Item = Received;
    fn next(&mut self) -> Option<Received> {
        loop {
            let mut line = String::new();
            if self.lines.read_line(&mut line).ok()? == 0 {
                return None;
            }
            let line = line.trim_end_matches(['\n', '\r']);
            if let Some(event) = self.parser.line(line) {
                return Some(event);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::TcpListener;

    /// Answers one request with the given text and gives back what was asked.
    fn answering(answer: &'static str) -> (Client, std::thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = Client::new(&listener.local_addr().unwrap().to_string()).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let (mut asked, mut length) = (String::new(), 0);
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                asked.push_str(&line);
                if line == "\r\n" {
                    break;
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            asked + &String::from_utf8(body).unwrap()
        });
        (client, server)
    }

    #[test]
    fn a_post_sends_json_and_reads_the_answer() {
        let (client, server) = answering(
            "HTTP/1.1 202 Accepted\r\ncontent-length: 9\r\nconnection: close\r\n\r\n{\"id\": 1}",
        );
        let body = serde_json::json!({"kind": "text_to_image"});
        let answer: Value = client.post("/v1/jobs", &body, &[("idempotency-key", "k")]).unwrap();
        assert_eq!(answer["id"], 1);
        let asked = server.join().unwrap().to_lowercase();
        assert!(asked.starts_with("post /v1/jobs http/1.1"), "{asked}");
        assert!(asked.contains("content-type: application/json"), "{asked}");
        assert!(asked.contains("idempotency-key: k"), "{asked}");
        assert!(asked.ends_with("{\"kind\":\"text_to_image\"}"), "{asked}");
    }

    #[test]
    fn an_error_answer_becomes_the_same_error() {
        let (client, server) = answering(
            "HTTP/1.1 404 Not Found\r\nconnection: close\r\n\r\n\
             {\"error\":{\"code\":\"model.not_found\",\"message\":\"no model\",\"hint\":\"look\",\
             \"retry\":\"after_change\",\"request_id\":\"r\"}}",
        );
        let error = client.get::<Value>("/v1/models/x").expect_err("404");
        server.join().unwrap();
        assert_eq!((error.code, error.hint.as_str()), (ErrorCode::ModelNotFound, "look"));
        assert_eq!(error.request_id.as_deref(), Some("r"));
    }

    #[test]
    fn another_kind_of_server_is_no_node() {
        let (client, server) =
            answering("HTTP/1.1 502 Bad Gateway\r\nconnection: close\r\n\r\n<h1>oops</h1>");
        let error = client.get::<Value>("/v1/node").expect_err("502");
        server.join().unwrap();
        assert_eq!(error.code, ErrorCode::NodeUnreachable);
    }

    #[test]
    fn nobody_there_is_unreachable_and_names_the_address() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let error = Client::new(&address).unwrap().get::<Value>("/v1/node").expect_err("closed");
        assert_eq!(error.code, ErrorCode::NodeUnreachable);
        assert!(error.message.contains(&address), "{error}");
    }

    #[test]
    fn a_code_of_a_newer_version_keeps_its_message() {
        let error = error_in("{\"error\":{\"code\":\"moon.full\",\"message\":\"too bright\"}}");
        assert_eq!(error.unwrap().message, "too bright (moon.full)");
        assert_eq!(error_in("<html>"), None);
    }

    #[test]
    fn events_are_read_until_the_stream_ends() {
        let (client, server) = answering(
            "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n\
             event: state\ndata: {}\nid: 3\n\n:\n\nevent: end\ndata: {}\nid: 4\n\nevent: sta",
        );
        let events: Vec<_> = client.events("/v1/events", Some(2)).unwrap().collect();
        assert_eq!(events.iter().map(|e| e.id).collect::<Vec<_>>(), [Some(3), Some(4)]);
        assert!(server.join().unwrap().to_lowercase().contains("last-event-id: 2"));
    }

    #[test]
    fn addresses_are_taken_with_and_without_their_scheme() {
        for good in ["http://127.0.0.1:4280", "http://127.0.0.1:4280/", "127.0.0.1:4280"] {
            assert_eq!(base_of(good).unwrap(), "http://127.0.0.1:4280");
        }
        for bad in ["https://127.0.0.1:4280", "", "http://", "http://a/b", "http://u@h:1"] {
            base_of(bad).expect_err(bad);
        }
        assert_eq!(segment("a b/../ü:1"), "a%20b%2F..%2F%C3%BC:1");
    }
}
