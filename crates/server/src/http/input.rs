//! What clients send, read strictly: JSON bodies, query strings and ids in paths. Every refusal is an [`ErrorBody`].

use super::App;
use super::answer::ApiError;
use atelier_protocol::{ArtifactId, Bytes, Detail, ErrorBody, ErrorCode, JobId};
use axum::extract::{FromRequest, Path, Query, Request};
use axum::http::Uri;
use axum::http::header::CONTENT_LENGTH;
use futures_util::StreamExt;
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Longest pause between two parts of a body.
const BODY_PAUSE_LIMIT: Duration = Duration::from_secs(30);
/// An over-long body is read to its end up to this, because a client that is still sending misses the answer.
const DISCARD_LIMIT_BYTES: u64 = 64 << 20;

/// A JSON object, at most as large as the node allows, without duplicate keys.
pub(super) struct JsonObject(pub(super) Value);

impl FromRequest<App> for JsonObject {
    type Rejection = ApiError;
    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let bytes = read_body(request, app.config.max_body_bytes).await?;
        Ok(Self(strict_object(&bytes)?))
    }
}

async fn read_body(request: Request, limit_bytes: u64) -> Result<Vec<u8>, ErrorBody> {
    let declared =
        request.headers().get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
    let mut fits = declared.is_none_or(|length: u64| length <= limit_bytes);
    let (mut kept, mut seen_bytes) = (Vec::new(), 0_u64);
    let mut parts = request.into_body().into_data_stream();
    loop {
        let part = match tokio::time::timeout(BODY_PAUSE_LIMIT, parts.next()).await {
            Ok(Some(Ok(part))) => part,
            Ok(None) if fits => return Ok(kept),
            Ok(None) => break,
            Ok(Some(Err(_))) | Err(_) => {
                let message = "the body ended before it was complete";
                return Err(ErrorBody::new(ErrorCode::RequestInvalid, message));
            }
        };
        seen_bytes = seen_bytes.saturating_add(part.len() as u64);
        if fits && seen_bytes > limit_bytes {
            fits = false;
            kept = Vec::new();
        }
        if fits {
            kept.extend_from_slice(&part);
        } else if seen_bytes > DISCARD_LIMIT_BYTES {
            break;
        }
    }
    let limit = Bytes(limit_bytes);
    let message = format!("the body is larger than {limit} ({limit_bytes} bytes)");
    Err(ErrorBody::new(ErrorCode::RequestTooLarge, message))
}

/// Reads an object; a duplicate key is refused, since two readers would disagree on which one counts.
fn strict_object(bytes: &[u8]) -> Result<Value, ErrorBody> {
    let invalid = |message: String| {
        let hint =
            "one JSON object, such as {\"kind\": \"text_to_image\", \"prompt\": \"a strawberry\"}.";
        ErrorBody::new(ErrorCode::RequestInvalid, message).with_hint(hint)
    };
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(invalid("the body is empty; a JSON object is needed".to_owned()));
    }
    match serde_json::from_slice(bytes) {
        Ok(Strict(value @ Value::Object(_))) => Ok(value),
        Ok(Strict(_)) => Err(invalid("the body is JSON but not an object".to_owned())),
        // The text of this error names a line and a column, and nothing of what was sent but a duplicate key.
        Err(error) => Err(invalid(format!("the body is not JSON as expected: {error}"))),
    }
}

struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Strict)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Strict(value)) = items.next_element()? {
            list.push(value);
        }
        Ok(Value::Array(list))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if object.contains_key(&key) {
                let shown: String = key.chars().take(60).collect();
                return Err(de::Error::custom(format_args!("the key {shown:?} is there twice")));
            }
            let Strict(value) = entries.next_value()?;
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}

/// The parameters of a query string, and what is wrong with them. Nothing is decided before all were read, so that every
/// problem is reported at once.
#[derive(Debug)]
pub(super) struct Parameters {
    values: BTreeMap<String, String>,
    problems: Vec<Detail>,
}

impl Parameters {
    /// Unknown and repeated ones are wrong.
    pub(super) fn of(uri: &Uri, known: &[&str]) -> Result<Self, ErrorBody> {
        let Ok(Query(pairs)) = Query::<Vec<(String, String)>>::try_from_uri(uri) else {
            return Err(ErrorBody::new(
                ErrorCode::RequestInvalid,
                "the query string cannot be read",
            ));
        };
        let (mut values, mut problems) = (BTreeMap::new(), Vec::new());
        for (name, value) in pairs {
            if !known.contains(&name.as_str()) {
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                let message = format!("no such parameter; known here: {known}");
                problems.push(Detail::new(name, message));
            } else if values.insert(name.clone(), value).is_some() {
                problems.push(Detail::new(name, "is there twice"));
            }
        }
        Ok(Self { values, problems })
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// One parameter as a value; `possible` says what it may be.
    pub(super) fn read<T: FromStr>(
        &mut self,
        name: &str,
        possible: &str,
        is_possible: impl Fn(&T) -> bool,
    ) -> Option<T> {
        let text = self.values.get(name)?;
        let value = text.parse().ok().filter(is_possible);
        if value.is_none() {
            let shown: String = text.chars().take(60).collect();
            self.problems.push(Detail::new(name, format!("`{shown}` is not {possible}")));
        }
        value
    }

    /// Whether all was well. Call it after the last `read`.
    pub(super) fn check(self) -> Result<(), ErrorBody> {
        let Some(first) = self.problems.first() else { return Ok(()) };
        let message = format!("the query string is wrong: {}: {}", first.field, first.message);
        Err(ErrorBody::new(ErrorCode::RequestInvalid, message).with_details(self.problems))
    }
}

/// An id in a path that is no id names nothing, so it is answered like one that is not there.
pub(super) fn job_id(path: Path<String>) -> Result<JobId, ErrorBody> {
    id(path, ErrorCode::ProcessingNotFound, "job")
}

pub(super) fn artifact_id(path: Path<String>) -> Result<ArtifactId, ErrorBody> {
    id(path, ErrorCode::ArtifactNotFound, "artifact")
}

fn id<T: FromStr>(Path(text): Path<String>, code: ErrorCode, what: &str) -> Result<T, ErrorBody> {
    text.parse().map_err(|_| {
        let shown: String = text.chars().take(60).collect();
        ErrorBody::new(code, format!("no {what} has the id `{shown}`"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use serde_json::json;

    #[test]
    fn objects_are_read_as_they_are() {
        let text = br#" {"a": [1, -2, 2.5, "x", null, true, {"b": 18446744073709551615}]} "#;
        let value = json!({"a": [1, -2, 2.5, "x", null, true, {"b": u64::MAX}]});
        assert_eq!(strict_object(text), Ok(value));
    }

    #[test]
    fn broken_duplicate_and_other_json_is_refused_with_its_place() {
        let message = |text: &str| {
            let error = strict_object(text.as_bytes()).expect_err("refused");
            assert_eq!(error.code, ErrorCode::RequestInvalid);
            error.message
        };
        assert!(message("{\"kind\": \n nope}").contains("line 2 column"), "broken");
        let duplicate = message("{\"a\": {\"b\": 1,\n \"b\": 2}}");
        assert!(duplicate.contains("\"b\" is there twice at line 2"), "{duplicate}");
        assert!(message("[1]").contains("not an object"));
        assert!(message("\"text\"").contains("not an object"));
        assert!(message(" \n").contains("empty"));
        assert!(message("{} {}").contains("trailing"));
        assert!(message(&"[".repeat(5000)).contains("recursion limit"));
        assert!(message("{\"a\": 1e999}").contains("out of range"));
    }

    #[test]
    fn the_text_of_a_prompt_is_not_repeated_in_an_error() {
        let error =
            strict_object(b"{\"prompt\": \"a secret garden\", \"x\": }").expect_err("broken");
        assert!(!error.message.contains("secret"), "{error:?}");
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_refused_with_the_limit() {
        let read = |bytes: usize, declared: Option<&str>| {
            let mut request = Request::builder();
            if let Some(length) = declared {
                request = request.header(CONTENT_LENGTH, length);
            }
            read_body(request.body(Body::from(vec![b'x'; bytes])).unwrap(), 1024)
        };
        assert_eq!(read(1024, None).await.map(|kept| kept.len()), Ok(1024));
        for (bytes, declared) in [(1025, None), (10, Some("99999"))] {
            let error = read(bytes, declared).await.expect_err("too large");
            assert_eq!(error.code, ErrorCode::RequestTooLarge);
            assert!(error.message.contains("1.0 KiB (1024 bytes)"), "{error:?}");
        }
    }

    #[test]
    fn every_wrong_query_parameter_is_reported() {
        let uri: Uri = "/v1/jobs?limit=5&limti=6&limit=7&x=1&state=".parse().unwrap();
        let mut parameters = Parameters::of(&uri, &["limit", "state"]).unwrap();
        assert_eq!(parameters.read("limit", "small", |limit: &u32| *limit < 3), None);
        assert_eq!(parameters.read("state", "a number", |_: &u32| true), None);
        let error = parameters.check().expect_err("five problems");
        let fields: Vec<_> = error.details.iter().map(|detail| detail.field.as_str()).collect();
        assert_eq!(fields, ["limti", "limit", "x", "limit", "state"]);
        let uri: Uri = "/v1/jobs?state=a%20b".parse().unwrap();
        let parameters = Parameters::of(&uri, &["limit", "state"]).unwrap();
        assert_eq!(parameters.text("state"), Some("a b"));
        assert_eq!(parameters.check(), Ok(()));
    }

    #[test]
    fn an_id_that_is_none_is_not_found() {
        let error = job_id(Path("../../etc/passwd".to_owned())).expect_err("no id");
        assert_eq!(error.code, ErrorCode::ProcessingNotFound);
        let error = artifact_id(Path(String::new())).expect_err("no id");
        assert_eq!(error.code, ErrorCode::ArtifactNotFound);
    }
}
