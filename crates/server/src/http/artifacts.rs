//! Finished pictures, streamed from disk. The path comes from the node, never from the client.

use super::App;
use super::answer::ApiError;
use super::input;
use atelier_engine::files;
use atelier_protocol::http::Artifact;
use atelier_protocol::{ErrorBody, ErrorCode};
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_TYPE, ETAG, IF_NONE_MATCH,
};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

const CHUNK_BYTES: usize = 256 << 10;

pub(super) async fn get(
    State(app): State<App>,
    path: Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let (artifact, file) = app.node.artifact(input::artifact_id(path)?).await?;
    let etag = format!("\"{}\"", artifact.blake3);
    let mut response = if knows(&headers, &etag) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        bytes(&artifact, file).await?
    };
    let headers = response.headers_mut();
    set(headers, ETAG, &etag);
    // The bytes of an id never change.
    set(headers, CACHE_CONTROL, "private, max-age=31536000, immutable");
    Ok(response)
}

async fn bytes(artifact: &Artifact, path: PathBuf) -> Result<Response, ErrorBody> {
    let expected = artifact.bytes;
    let opened = tokio::task::spawn_blocking(move || {
        let file = files::open(&path)?;
        let length = file.metadata()?.len();
        if length != expected {
            let message = format!("{} has {length} bytes, not {expected}", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        Ok(file)
    });
    let opened = opened.await.map_err(io::Error::other).and_then(|opened| opened);
    let file = opened.map_err(|error| {
        tracing::warn!(artifact = %artifact.id, %error, "the file of an artifact is not there");
        let message = format!("the file of artifact {} is gone or damaged", artifact.id);
        ErrorBody::new(ErrorCode::ArtifactNotFound, message)
    })?;
    let mut response = Response::new(chunks(file));
    let headers = response.headers_mut();
    set(headers, CONTENT_TYPE, &artifact.media_type);
    set(headers, CONTENT_LENGTH, &artifact.bytes.to_string());
    set(headers, CONTENT_DISPOSITION, &format!("inline; filename=\"{}\"", file_name(artifact)));
    Ok(response)
}

fn set(headers: &mut HeaderMap, name: axum::http::HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// Whether the client already has these bytes.
fn knows(headers: &HeaderMap, etag: &str) -> bool {
    let lists = headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    lists
        .flat_map(|list| list.split(','))
        .map(str::trim)
        .any(|known| known == "*" || known.strip_prefix("W/").unwrap_or(known) == etag)
}

/// A name for those who save the picture: nothing of the prompt, which belongs to nobody's log.
fn file_name(artifact: &Artifact) -> String {
    let extension = extension(&artifact.media_type);
    format!("atelier-{}-{}.{extension}", artifact.seed, artifact.id)
}

/// The usual ending of a media type that we write.
pub(crate) fn extension(media_type: &str) -> &'static str {
    match media_type {
        "image/png" => "png",
        "image/jpeg" => "jpg",
        "image/webp" => "webp",
        _ => "bin",
    }
}

/// Reads off the async threads, one part at a time, so that a slow client holds one part and not a picture.
fn chunks(file: File) -> Body {
    Body::from_stream(stream::try_unfold(file, |mut file| async move {
        let read = tokio::task::spawn_blocking(move || {
            let mut chunk = vec![0; CHUNK_BYTES];
            let length = file.read(&mut chunk)?;
            chunk.truncate(length);
            Ok::<_, io::Error>((length > 0).then(|| (Bytes::from(chunk), file)))
        });
        read.await.map_err(io::Error::other)?
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use atelier_protocol::ArtifactId;

    fn artifact(bytes: u64) -> Artifact {
        Artifact {
            id: ArtifactId(uuid::Uuid::nil()),
            index: 0,
            media_type: "image/jpeg".to_owned(),
            width: 1,
            height: 1,
            bytes,
            blake3: "ab".to_owned(),
            seed: 3,
            url: String::new(),
        }
    }

    #[tokio::test]
    async fn a_picture_is_sent_whole_with_its_type_and_length() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let content: Vec<u8> = (0..=255).cycle().take(CHUNK_BYTES + 7).collect();
        files::write_atomic(&path, &content).unwrap();
        let response = bytes(&artifact(content.len() as u64), path).await.unwrap();
        assert_eq!(response.headers()["content-type"], "image/jpeg");
        assert_eq!(response.headers()["content-length"], content.len().to_string());
        assert_eq!(
            response.headers()["content-disposition"],
            "inline; filename=\"atelier-3-00000000-0000-0000-0000-000000000000.jpg\""
        );
        let sent = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        assert_eq!(sent, content);
    }

    #[tokio::test]
    async fn a_file_that_is_gone_or_has_another_length_is_not_found_and_its_path_stays_inside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let gone = bytes(&artifact(3), path.clone()).await.expect_err("gone");
        files::write_atomic(&path, b"four").unwrap();
        let damaged = bytes(&artifact(3), path).await.expect_err("damaged");
        for error in [gone, damaged] {
            assert_eq!(error.code, ErrorCode::ArtifactNotFound);
            assert!(!error.message.contains('/'), "{error:?}");
        }
    }

    #[test]
    fn bytes_that_the_client_has_are_not_sent_again() {
        let knows = |value: &'static str| {
            let headers = HeaderMap::from_iter([(IF_NONE_MATCH, HeaderValue::from_static(value))]);
            knows(&headers, "\"ab\"")
        };
        assert!(knows("\"ab\""));
        assert!(knows("\"x\", W/\"ab\""));
        assert!(knows("*"));
        assert!(!knows("\"abc\""));
        assert!(!knows("ab"));
    }
}
