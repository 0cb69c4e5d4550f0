//! The job store, read from its first page to its last where no node has it open.

use super::finding::Finding;
use crate::serve::lock;
use atelier_engine::store;
use atelier_protocol::ErrorBody;
use std::path::Path;

pub(super) fn look(data: &Path) -> Finding {
    let what = "store";
    let path = data.join("atelier.db");
    if lock::is_held(data) {
        return Finding::good(what, "in use by the node, which checks it by itself");
    }
    let keep = format!("move {} away to begin anew, or bring back a backup", path.display());
    match store::inspect(&path) {
        Ok(None) => Finding::good(what, "none yet; the first node makes it"),
        Ok(Some(report)) if report.schema > report.known_schema => Finding::bad(
            what,
            format!(
                "{} has schema version {}, and this program knows none above {}",
                path.display(),
                report.schema,
                report.known_schema
            ),
            "run the newer version of Atelier that wrote it, or use another data folder",
        ),
        Ok(Some(report)) if !report.damage.is_empty() => {
            let seen = format!("{} is damaged: {}", path.display(), report.damage.join("; "));
            Finding::bad(what, seen, keep)
        }
        Ok(Some(report)) => {
            let store::StoreReport { bytes, schema, .. } = report;
            Finding::good(what, format!("sound; {bytes}, schema version {schema}"))
        }
        Err(error) => {
            let body = ErrorBody::from(error);
            Finding::bad(what, format!("{}: {}", path.display(), body.message), keep)
        }
    }
}
