//! Whom to listen to. Loopback is not a lock: any page in the user's browser can send requests to it.
//!
//! Three rules, none of which a page can get around: the `Host` is a loopback one (a foreign name that was made to point
//! here is refused), an `Origin` is this very node, and a body is declared as JSON (which a form cannot do, and which makes
//! a browser ask first). Pure: headers in, verdict out.

use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, ORIGIN, TRANSFER_ENCODING};
use axum::http::{HeaderMap, HeaderName, Method, Uri};
use std::net::IpAddr;

/// Why a request is not listened to.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("the request names no host, or several")]
    NoHost,
    #[error("the host `{0}` is not this machine; only localhost, 127.0.0.1 and [::1] are answered")]
    ForeignHost(String),
    #[error("the request comes from `{0}`, which is not this node")]
    ForeignOrigin(String),
    #[error("a body must have the content type application/json, not `{0}`")]
    OtherContentType(String),
    #[error("a body must have the content type application/json; the request names none")]
    NoContentType,
}

/// Checks one request. `listen` is the address of this node.
pub(super) fn check(
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
    listen: IpAddr,
) -> Result<(), Refusal> {
    let host = only(headers, &HOST).ok_or(Refusal::NoHost)?;
    // A request line with a whole URL overrides the header, so both must be local.
    for authority in
        [Some(host.as_str()), uri.authority().map(|a| a.as_str())].into_iter().flatten()
    {
        if !is_local(authority, listen) {
            return Err(Refusal::ForeignHost(authority.to_owned()));
        }
    }
    if headers.contains_key(ORIGIN) {
        let origin = only(headers, &ORIGIN).unwrap_or_default();
        if !origin.eq_ignore_ascii_case(&format!("http://{host}")) {
            return Err(Refusal::ForeignOrigin(origin));
        }
    }
    if *method != Method::GET && *method != Method::HEAD {
        let has_body = headers.contains_key(TRANSFER_ENCODING)
            || headers.get(CONTENT_LENGTH).is_some_and(|length| length != "0");
        match only(headers, &CONTENT_TYPE) {
            Some(given) if is_json(&given) => {}
            Some(given) => return Err(Refusal::OtherContentType(given)),
            None if has_body || headers.contains_key(CONTENT_TYPE) => {
                return Err(Refusal::NoContentType);
            }
            // Nothing to misread, and a page's request would carry its origin.
            None => {}
        }
    }
    Ok(())
}

/// The value of a header that must be there exactly once.
fn only(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    if values.next().is_some() {
        return None;
    }
    Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
}

fn is_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default();
    essence.trim().eq_ignore_ascii_case("application/json")
}

fn is_local(authority: &str, listen: IpAddr) -> bool {
    let (name, port) = match authority.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((name, port)) => (name, port),
            None => return false,
        },
        None => authority.find(':').map_or((authority, ""), |colon| authority.split_at(colon)),
    };
    let port_is_sane = match port.strip_prefix(':') {
        Some(digits) => digits.parse::<u16>().is_ok() && digits.bytes().all(|b| b.is_ascii_digit()),
        None => port.is_empty(),
    };
    let bracketed = authority.starts_with('[');
    let name_is_local = match name.parse::<IpAddr>() {
        Ok(ip) => {
            ip.is_ipv6() == bracketed
                && (ip == listen
                    || ip == IpAddr::from([127, 0, 0, 1])
                    || ip == IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1_u16]))
        }
        Err(_) => !bracketed && name.eq_ignore_ascii_case("localhost"),
    };
    port_is_sane && name_is_local
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn verdict(method: &str, target: &str, lines: &[(&str, &str)]) -> Result<(), Refusal> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_str(value).unwrap(),
            );
        }
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        check(&method, &target.parse().unwrap(), &headers, IpAddr::from([127, 0, 0, 5]))
    }

    #[test]
    fn only_local_hosts_are_answered() {
        let local = [
            "localhost",
            "localhost:4280",
            "LocalHost:1",
            "127.0.0.1",
            "127.0.0.1:4280",
            "[::1]",
            "[::1]:4280",
            "127.0.0.5:4280",
        ];
        for host in local {
            assert_eq!(verdict("GET", "/v1/jobs", &[("host", host)]), Ok(()), "{host}");
        }
        let foreign = [
            "evil.example",
            "evil.example:4280",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "localhost.",
            "127.0.0.2",
            "192.168.1.4:4280",
            "0.0.0.0:4280",
            "[::]:4280",
            "::1",
            "",
            "localhost:",
            "localhost:x",
            "localhost:+80",
            "localhost:4280:1",
            "[::1",
            "[::1]x",
            "[localhost]",
            "[127.0.0.1]",
            "user@localhost",
        ];
        for host in foreign {
            assert_eq!(
                verdict("GET", "/v1/jobs", &[("host", host)]),
                Err(Refusal::ForeignHost(host.to_owned())),
                "{host}"
            );
        }
    }

    #[test]
    fn a_host_must_be_named_once() {
        assert_eq!(verdict("GET", "/", &[]), Err(Refusal::NoHost));
        let twice = [("host", "localhost"), ("host", "evil.example")];
        assert_eq!(verdict("GET", "/", &twice), Err(Refusal::NoHost));
    }

    #[test]
    fn a_whole_url_in_the_request_line_must_be_local_too() {
        let host = [("host", "localhost:4280")];
        assert_eq!(verdict("GET", "http://localhost:4280/v1/jobs", &host), Ok(()));
        assert_eq!(
            verdict("GET", "http://evil.example/v1/jobs", &host),
            Err(Refusal::ForeignHost("evil.example".to_owned()))
        );
    }

    #[test]
    fn only_pages_of_this_very_node_may_ask() {
        let from = |origin| verdict("GET", "/", &[("host", "localhost:4280"), ("origin", origin)]);
        assert_eq!(from("http://localhost:4280"), Ok(()));
        for foreign in [
            "http://evil.example",
            "null",
            "",
            "http://localhost:3000",
            "http://127.0.0.1:4280",
            "https://localhost:4280",
            "http://localhost",
            "http://localhost:4280.evil.example",
        ] {
            assert_eq!(from(foreign), Err(Refusal::ForeignOrigin(foreign.to_owned())));
        }
    }

    #[test]
    fn a_body_must_be_declared_as_json() {
        let post = |lines: &[(&str, &str)]| {
            verdict("POST", "/v1/jobs", &[&[("host", "localhost")], lines].concat())
        };
        let length = ("content-length", "2");
        for json in ["application/json", "application/json; charset=utf-8", "Application/JSON"] {
            assert_eq!(post(&[length, ("content-type", json)]), Ok(()), "{json}");
        }
        for other in ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", ""] {
            let refused = Err(Refusal::OtherContentType(other.to_owned()));
            assert_eq!(post(&[length, ("content-type", other)]), refused);
            assert_eq!(post(&[("content-type", other)]), refused, "also without a body");
        }
        assert_eq!(post(&[length]), Err(Refusal::NoContentType));
        assert_eq!(post(&[("transfer-encoding", "chunked")]), Err(Refusal::NoContentType));
        let twice = [("content-type", "application/json"), ("content-type", "text/plain")];
        assert_eq!(post(&twice), Err(Refusal::NoContentType));
        assert_eq!(post(&[]), Ok(()), "nothing was sent that could be misread");
        assert_eq!(post(&[("content-length", "0")]), Ok(()));
    }
}
