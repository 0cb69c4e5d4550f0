//! Each folder of models: whether it can be read, how many models in it can be used, and why others cannot.

use super::finding::Finding;
use crate::config::Config;
use atelier_engine::clock::Clock;
use atelier_engine::files;
use atelier_engine::model::{CatalogView, ModelConfig, ModelHandle, ScanReport};
use atelier_protocol::ErrorBody;
use std::path::{Path, PathBuf};

/// Problems that are told of one folder; the list of models shows all.
const TOLD: usize = 3;

pub(super) async fn look(config: &Config) -> Vec<Finding> {
    let what = "models";
    let config = config.node(std::env::current_exe().ok().as_deref());
    // The node's own folder is made by its first start; all others were named by somebody.
    let own = Some(config.data.join("models")).filter(|own| own.exists());
    let named = config.model_folders.iter().cloned();
    let folders: Vec<PathBuf> = own.into_iter().chain(named).collect();
    let (readable, mut findings) = split(folders);
    let models = ModelHandle::start(
        ModelConfig { folders: readable.clone(), default_model: config.default_model },
        Clock::system(),
    );
    let report = match models.scan().await {
        Ok(report) => report,
        Err(error) => {
            let body = ErrorBody::from(error);
            findings.push(Finding::bad(what, body.message, body.hint));
            return findings;
        }
    };
    let view = models.view();
    findings.extend(readable.iter().map(|folder| of_folder(folder, &view, &report)));
    findings.push(match models.resolve(None) {
        Ok(model) => Finding::good(what, format!("default: {}", model.id)),
        Err(error) => {
            let body = ErrorBody::from(error);
            Finding::bad(what, body.message, body.hint)
        }
    });
    findings
}

/// Folders that can be listed, and a finding for each that cannot.
fn split(folders: Vec<PathBuf>) -> (Vec<PathBuf>, Vec<Finding>) {
    let (mut readable, mut findings) = (Vec::new(), Vec::new());
    for folder in folders {
        let Err(error) = files::read_dir(&folder) else {
            readable.push(folder);
            continue;
        };
        let seen = if folder.symlink_metadata().is_ok() && !folder.exists() {
            format!("{} is a link to a place that is not there", folder.display())
        } else {
            error.to_string()
        };
        let fix = "make it a folder that this user may list and enter (`chmod u+rx`), or take it out of \
                   `model_folders`";
        findings.push(Finding::bad("models", seen, fix));
    }
    (readable, findings)
}

fn of_folder(folder: &Path, view: &CatalogView, report: &ScanReport) -> Finding {
    let what = "models";
    let usable = view.models.iter().filter(|model| model.folder.starts_with(folder)).count();
    let unusable: Vec<_> =
        view.unusable.iter().filter(|model| model.path.starts_with(folder)).collect();
    let problems = unusable.iter().map(|model| format!("{}: {}", model.id, model.problem));
    // Findings are sentences that name the path.
    let shown = folder.to_string_lossy();
    let others = report.findings.iter().filter(|finding| finding.contains(&*shown)).cloned();
    let all: Vec<String> = problems.chain(others).collect();
    let counts = format!("{} usable, {} not, in {shown}", usable, unusable.len());
    if all.is_empty() {
        return Finding::good(what, counts);
    }
    let mut told = all.iter().take(TOLD).cloned().collect::<Vec<_>>().join("; ");
    if all.len() > TOLD {
        told.push_str(&format!("; and {} more", all.len() - TOLD));
    }
    let fix =
        "`atelier models list` shows all; bring back what is missing, or take it out of the folder";
    Finding::note(what, format!("{counts}: {told}"), fix)
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_folder_that_cannot_be_listed_is_named_whatever_the_reason() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        files::write_atomic(&at("file"), b"").unwrap();
        symlink(at("gone"), at("link")).unwrap();
        let (readable, findings) =
            split(vec![folder.path().to_owned(), at("file"), at("link"), at("missing")]);
        assert_eq!(readable, [folder.path()]);
        let words = ["file", "link to a place that is not there", "missing"];
        assert_eq!(findings.len(), words.len());
        for (finding, word) in findings.iter().zip(words) {
            assert_eq!(finding.verdict, Verdict::Bad);
            assert!(finding.seen.contains(word), "{finding:?}");
        }
    }

    #[tokio::test]
    async fn a_model_that_cannot_be_used_is_told_with_its_reason_and_its_folder() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for n in 0..5 {
            let broken = one.path().join(format!("{n}.safetensors"));
            files::write_atomic(&broken, b"not a model").unwrap();
        }
        let folders = vec![one.path().to_owned(), other.path().to_owned()];
        let models =
            ModelHandle::start(ModelConfig { folders, default_model: None }, Clock::system());
        let report = models.scan().await.unwrap();
        let first = of_folder(one.path(), &models.view(), &report);
        assert_eq!(first.verdict, Verdict::Note);
        assert!(first.seen.starts_with("0 usable, 5 not, in "), "{first:?}");
        assert!(first.seen.ends_with("and 2 more"), "{first:?}");
        assert_eq!(of_folder(other.path(), &models.view(), &report).verdict, Verdict::Good);
    }
}
