//! The worker: the interpreter and the environment that it would run in, and whether one starts.

use super::DoctorArgs;
use super::finding::Finding;
use crate::config::Config;
use atelier_engine::node::{WorkerTrial, cards, try_worker};
use atelier_engine::worker::environment::{
    EnvironmentInfo, EnvironmentState, InstallOptions, Plan,
};
use atelier_protocol::ErrorBody;
use std::time::Duration;

/// From the start of the process to `ready`: an import takes 3 to 20 s, on a cold network disk longer.
const START_LIMIT: Duration = Duration::from_secs(120);

pub(super) async fn look(config: &Config, args: DoctorArgs) -> Vec<Finding> {
    let (mut findings, can_start) = match &config.worker_command {
        Some(words) => {
            let seen = format!("another program: {}", words.join(" "));
            (vec![Finding::good("worker", seen)], true)
        }
        None => environment(config).await,
    };
    if can_start {
        findings.push(if args.no_worker_start {
            Finding::good("worker start", "not tried (`--no-worker-start`)")
        } else {
            trial(config).await
        });
    }
    findings
}

/// The environment, and whether a worker can be started in it.
async fn environment(config: &Config) -> (Vec<Finding>, bool) {
    let environments = config.node(None).environments();
    let info = environments.info().await;
    match info.state {
        EnvironmentState::Ready => {
            let packages = Finding::good("environment", packages(&info));
            (vec![interpreter(&info), packages], true)
        }
        EnvironmentState::External if info.problems.is_empty() => {
            let packages = Finding::good("environment", format!("your own; {}", packages(&info)));
            (vec![interpreter(&info), packages], true)
        }
        EnvironmentState::External => {
            let seen = format!("your own interpreter: {}", info.problems.join("; "));
            let fix = "install what is missing there, or unset `ATELIER_PYTHON`";
            (vec![Finding::bad("environment", seen, fix)], false)
        }
        EnvironmentState::Busy => {
            let seen = "another process is installing it";
            (vec![Finding::note("environment", seen, "wait until it is done")], false)
        }
        EnvironmentState::Absent | EnvironmentState::Interrupted => {
            let plan = environments.plan(&cards().await, InstallOptions::default()).await;
            (to_install(info.state, plan.map_err(ErrorBody::from)), false)
        }
    }
}

fn to_install(state: EnvironmentState, plan: Result<Plan, ErrorBody>) -> Vec<Finding> {
    let what = "environment";
    let notice = match plan {
        Ok(Plan::Install(notice)) => notice,
        // Another process was faster than this look.
        Ok(Plan::Ready { .. }) => return vec![Finding::good(what, "just installed")],
        Err(error) => return vec![Finding::bad("python", error.message, error.hint)],
    };
    let python = format!("Python {} ({})", notice.python_version, notice.python.display());
    let mut findings = vec![Finding::good("python", python)];
    findings.push(if !notice.fits() {
        Finding::bad(
            what,
            format!(
                "not installed; {} needed in {}, {} free",
                notice.needed,
                notice.folder.display(),
                notice.free
            ),
            "free space, or point `ATELIER_ENVS` at a larger disk",
        )
    } else if state == EnvironmentState::Interrupted {
        let seen = "an installation was interrupted; what it downloaded is kept";
        Finding::note(what, seen, "`atelier worker install`, or leave it to the first picture")
    } else {
        let seen = format!("not installed yet; {} to download at most", notice.download);
        Finding::note(what, seen, "`atelier worker install`, or leave it to the first picture")
    });
    let fix = "a PyTorch for this card through `ATELIER_PYTHON`";
    findings
        .extend(notice.cards_left_out.iter().map(|card| Finding::note(what, card.clone(), fix)));
    findings
}

fn interpreter(info: &EnvironmentInfo) -> Finding {
    let version = info.python_version.as_deref().unwrap_or("of an unknown version");
    let path = info.python.as_ref().map(|path| format!(" ({})", path.display()));
    Finding::good("python", format!("Python {version}{}", path.unwrap_or_default()))
}

fn packages(info: &EnvironmentInfo) -> String {
    let version = |name| info.versions.get(name).map_or("?", String::as_str);
    format!(
        "PyTorch {}, diffusers {}, in {}",
        version("torch"),
        version("diffusers"),
        info.path.as_ref().unwrap_or(&info.envs).display()
    )
}

async fn trial(config: &Config) -> Finding {
    let what = "worker start";
    let name = format!("atelier-doctor-{}", uuid::Uuid::now_v7().simple());
    let scratch = std::env::temp_dir().join(name);
    match try_worker(&config.node(None), scratch, START_LIMIT).await {
        Ok(Some(trial)) => started(&trial),
        Ok(None) => Finding::note(what, "the environment went away", "`atelier worker install`"),
        Err(error) => {
            let last = error.details.last().map(|detail| format!(" ({})", detail.message));
            let seen = format!("{}{}", error.message, last.unwrap_or_default());
            Finding::bad(what, seen, error.hint)
        }
    }
}

fn started(trial: &WorkerTrial) -> Finding {
    let what = "worker start";
    let versions: Vec<_> =
        trial.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
    let seen = format!("ready in {:.1} s; {}", trial.seconds_to_ready, versions.join(", "));
    // The processor needs no driver; another program in the worker's place may see nothing at all.
    let sees_a_card = trial.seen.iter().any(|device| device.backend != "cpu");
    if trial.device.is_cpu() || sees_a_card {
        return Finding::good(what, seen);
    }
    Finding::bad(
        what,
        format!("{seen}; its PyTorch sees no card, though {} is there", trial.device),
        "a PyTorch built for this card and a driver that is new enough for it: `atelier worker install --repair`, or \
         another interpreter in `ATELIER_PYTHON`",
    )
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;
    use atelier_protocol::DeviceId;
    use atelier_protocol::worker::WorkerDevice;

    fn trial(device: &str, backends: &[&str]) -> WorkerTrial {
        let seen = backends.iter().map(|backend| WorkerDevice {
            id: DeviceId((*backend).to_owned()),
            name: "a device".to_owned(),
            backend: (*backend).to_owned(),
            uuid: None,
            memory_bytes: None,
            capability: None,
            dtypes: Vec::new(),
        });
        WorkerTrial {
            device: DeviceId(device.to_owned()),
            seconds_to_ready: 5.25,
            versions: [("torch".to_owned(), "2.15.0".to_owned())].into(),
            seen: seen.collect(),
        }
    }

    #[test]
    fn a_worker_that_starts_and_cannot_see_the_card_is_of_no_use() {
        let good = started(&trial("cuda:0", &["cpu", "cuda"]));
        assert_eq!(good, Finding::good("worker start", "ready in 5.2 s; torch 2.15.0"));
        assert_eq!(started(&trial("cpu", &[])).verdict, Verdict::Good);
        let blind = started(&trial("cuda:0", &["cpu"]));
        assert_eq!(blind.verdict, Verdict::Bad);
        assert!(blind.seen.contains("sees no card, though cuda:0 is there"), "{blind:?}");
    }
}
