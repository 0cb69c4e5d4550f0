//! The headers of a submission: `Prefer: wait` and `Idempotency-Key`. Pure.

use atelier_protocol::{Detail, ErrorBody, ErrorCode};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use std::time::Duration;

pub(super) const PREFER: HeaderName = HeaderName::from_static("prefer");
pub(super) const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");
pub(super) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
pub(super) const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
const MAX_KEY_CHARS: usize = 255;

/// How long to wait for the job's end, when asked to: `wait=N` seconds, or `wait` for as long as this node allows. A
/// preference that makes no sense is ignored, as RFC 7240 wants.
pub(super) fn wait(headers: &HeaderMap, longest: Duration) -> Option<Duration> {
    let preferences = headers.get_all(PREFER).iter().filter_map(|value| value.to_str().ok());
    preferences.flat_map(|value| value.split(',')).find_map(|preference| {
        let preference = preference.split(';').next()?.trim();
        let (name, value) = match preference.split_once('=') {
            Some((name, value)) => (name.trim(), Some(value.trim().trim_matches('"'))),
            None => (preference, None),
        };
        if !name.eq_ignore_ascii_case("wait") {
            return None;
        }
        let asked = match value {
            None => longest,
            Some(seconds) => Duration::from_secs(seconds.parse().ok()?),
        };
        Some(asked.min(longest))
    })
}

/// What was granted, as an answer's header.
pub(super) fn applied(wait: Duration) -> HeaderValue {
    HeaderValue::from_str(&format!("wait={}", wait.as_secs())).expect("digits and ASCII letters")
}

pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, ErrorBody> {
    let mut keys = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(key) = keys.next() else { return Ok(None) };
    let problem = match key.to_str() {
        Ok(_) if keys.next().is_some() => "is there more than once",
        Ok("") => "is empty",
        Ok(text) if text.len() > MAX_KEY_CHARS => "is longer than 255 characters",
        Ok(text) => return Ok(Some(text.to_owned())),
        Err(_) => "holds something else than visible ASCII characters",
    };
    let message = format!("the header Idempotency-Key {problem}");
    let detail = Detail::new("Idempotency-Key", problem);
    Err(ErrorBody::new(ErrorCode::RequestInvalid, message).with_details(vec![detail]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: HeaderName, values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(name.clone(), HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn a_wait_is_granted_up_to_the_limit() {
        let limit = Duration::from_secs(60);
        let asked = |values: &[&str]| wait(&headers(PREFER, values), limit).map(|d| d.as_secs());
        assert_eq!(asked(&["wait=5"]), Some(5));
        assert_eq!(asked(&["respond-async, Wait = \"7\" ; x=1"]), Some(7));
        assert_eq!(asked(&["respond-async", "wait=8"]), Some(8));
        assert_eq!(asked(&["wait=0"]), Some(0));
        assert_eq!(asked(&["wait=999"]), Some(60));
        assert_eq!(asked(&["wait"]), Some(60));
        for odd in ["wait=soon", "wait=-1", "waiting=5", "", "respond-async"] {
            assert_eq!(asked(&[odd]), None, "{odd}");
        }
        assert_eq!(asked(&[]), None);
        assert_eq!(applied(limit), "wait=60");
    }

    #[test]
    fn an_idempotency_key_is_one_to_255_visible_characters() {
        let key = |values: &[&str]| idempotency_key(&headers(IDEMPOTENCY_KEY, values));
        assert_eq!(key(&[]), Ok(None));
        assert_eq!(key(&["k"]), Ok(Some("k".to_owned())));
        assert!(key(&[&"k".repeat(255)]).is_ok());
        for wrong in [&[""] as &[&str], &["a", "b"], &[&"k".repeat(256)], &["\u{e9}"]] {
            let error = key(wrong).expect_err("refused");
            assert_eq!(error.code, ErrorCode::RequestInvalid);
            assert_eq!(error.details[0].field, "Idempotency-Key");
        }
    }
}
