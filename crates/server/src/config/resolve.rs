//! From what was written to what is needed: one function, no I/O of its own but reading the file.

use super::environment::{self, CONFIG_VARIABLE, Environment, Places};
use super::file::{self, FileLayer};
use super::raw::{self, FORMATS, Kind, LEVELS, RawConfig, SPARES};
use super::{Config, ConfigError, DEFAULT_CONFIG, Flags, LogConfig, LogFormat, Origin, Problem};
use atelier_engine::files;
use atelier_engine::node::SparePolicy;
use atelier_protocol::Bytes;
use serde_json::{Value, json};
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tracing::level_filters::LevelFilter;

/// One setting as it came out, for `atelier config show`.
#[derive(Clone, PartialEq, Debug)]
pub struct Row {
    pub key: &'static str,
    pub value: Value,
    pub origin: Origin,
}

/// The settings and how they came about.
#[derive(Clone, Debug)]
pub struct Settings {
    pub config: Config,
    pub rows: Vec<Row>,
    /// The file that was read, if one was.
    pub file: Option<PathBuf>,
    /// Things that look like slips but are no errors.
    pub warnings: Vec<String>,
}

impl Settings {
    /// Whether somebody chose this setting.
    #[must_use]
    pub fn is_chosen(&self, key: &str) -> bool {
        self.rows.iter().any(|row| row.key == key && row.origin != Origin::Default)
    }
}

/// Reads the settings: embedded defaults, then the file, then the environment, then the flags.
pub fn load(flags: &Flags, env: &dyn Environment) -> Result<Settings, ConfigError> {
    let places = Places::from(env);
    let defaults = file::parse(DEFAULT_CONFIG, Path::new("default-config.toml"))
        .map_err(ConfigError::Wrong)?;
    let (environment, mut problems, warnings) = environment::layer(env);

    let named = flags.config.clone().or_else(|| env.var(CONFIG_VARIABLE).map(PathBuf::from));
    let in_data = flags
        .raw
        .data
        .as_ref()
        .or(environment.data.as_ref())
        .and_then(|path| absolute(path, None, &places))
        .or_else(|| default_data(&places))
        .map(|data| data.join("atelier.toml"))
        .filter(|path| path.exists());
    let path = named.clone().or(in_data);
    let mut file = FileLayer::default();
    if let Some(path) = &path {
        match file::parse(&files::read_to_string(path)?, path) {
            Ok(layer) => file = layer,
            Err(found) => problems.extend(found),
        }
        if named.is_none() && file.raw.data.is_some() {
            problems.push(Problem {
                origin: Origin::File { path: path.clone(), line: file.lines.get("data").copied() },
                key: "data".to_owned(),
                message: "`data` cannot be set by a file that is found through it; \
                          use `--config`, `ATELIER_DATA` or `--data`"
                    .to_owned(),
            });
        }
    }
    let mut resolver = Resolver {
        defaults: &defaults.raw,
        file: &file,
        path: path.as_deref(),
        environment: &environment,
        flags: &flags.raw,
        places: &places,
        path_variable: env.var("PATH").unwrap_or_default().into(),
        rows: Vec::new(),
        problems,
    };
    let config = resolver.config();
    let (rows, problems) = (resolver.rows, resolver.problems);
    match config {
        Some(config) if problems.is_empty() => Ok(Settings { config, rows, file: path, warnings }),
        _ => Err(ConfigError::Wrong(problems)),
    }
}

fn default_data(places: &Places) -> Option<PathBuf> {
    places.data_home.as_ref().map(|folder| folder.join("atelier"))
}

/// Makes a path absolute: `~/` from the home folder, relative ones from `base` (the file's folder) or the current folder.
fn absolute(path: &Path, base: Option<&Path>, places: &Places) -> Option<PathBuf> {
    let path = match (path.strip_prefix("~"), &places.home) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => base.map_or_else(|| path.to_owned(), |base| base.join(path)),
    };
    std::path::absolute(path).ok() // fails for an empty path and without a current folder
}

struct Resolver<'a> {
    defaults: &'a RawConfig,
    file: &'a FileLayer,
    path: Option<&'a Path>,
    environment: &'a RawConfig,
    flags: &'a RawConfig,
    places: &'a Places,
    path_variable: OsString,
    rows: Vec<Row>,
    problems: Vec<Problem>,
}

impl Resolver<'_> {
    /// None when something that everything else needs is missing; otherwise the problems decide.
    fn config(&mut self) -> Option<Config> {
        let default_data = default_data(self.places);
        let data = self.path("data", |raw| raw.data.clone(), default_data);
        if data.is_none() {
            self.wrong(
                "data",
                &Origin::Default,
                "there is no home folder to put data into; name a folder with `--data`".to_owned(),
            );
        }
        let data = data?;
        let envs = self.path("envs", |raw| raw.envs.clone(), Some(data.join("envs")))?;
        let listen = self.checked("listen", |raw| raw.listen.clone(), |text| listen(&text));
        let model_folders = self.folders();
        let default_model =
            self.checked("default_model", |raw| raw.default_model.clone(), Ok::<_, String>);
        let pictures = self
            .places
            .pictures
            .as_ref()
            .map_or_else(|| data.join("pictures"), |folder| folder.join("Atelier"));
        let pictures = self.path("pictures", |raw| raw.pictures.clone(), Some(pictures))?;
        let queue_limit = self.count("queue_limit", |raw| raw.queue_limit);
        let max_attempts = self.count("max_attempts", |raw| raw.max_attempts);
        let max_body_bytes = self.count("max_body_bytes", |raw| raw.max_body_bytes);
        let max_wait_s = self.count("max_wait_s", |raw| raw.max_wait_s);
        let idle_exit_s = self.count("idle_exit_s", |raw| raw.idle_exit_s);
        let warm_start = self.checked("warm_start", |raw| raw.warm_start, Ok::<_, String>);
        let python = self.path("worker.python", |raw| raw.worker.python.clone(), None);
        let command =
            self.checked("worker.command", |raw| raw.worker.command.clone(), Ok::<_, String>);
        let spare =
            self.checked("worker.spare", |raw| raw.worker.spare.clone(), |text| spare(&text));
        let recycle_growth_mib =
            self.count("worker.recycle_growth_mib", |raw| raw.worker.recycle_growth_mib);
        let level = self.checked("log.level", |raw| raw.log.level.clone(), |text| level(&text));
        let format = self.checked("log.format", |raw| raw.log.format.clone(), |text| format(&text));
        Some(Config {
            data,
            envs,
            listen: listen?,
            model_folders,
            default_model: default_model.filter(|name| !name.is_empty()),
            pictures,
            queue_limit: u32::try_from(queue_limit?).ok()?,
            max_attempts: u32::try_from(max_attempts?).ok()?,
            max_body_bytes: max_body_bytes?,
            max_wait: Duration::from_secs(max_wait_s?),
            idle_exit: idle_exit_s.filter(|s| *s > 0).map(Duration::from_secs),
            warm_start: warm_start?,
            python,
            worker_command: command.filter(|words| !words.is_empty()),
            spare: spare?,
            recycle_growth: recycle_growth_mib.filter(|mib| *mib > 0).map(Bytes::mib),
            path: self.path_variable.clone(),
            log: LogConfig { level: level?, format: format? },
        })
    }

    /// The value of the strongest source that has one.
    fn pick<T>(
        &self,
        key: &'static str,
        get: impl Fn(&RawConfig) -> Option<T>,
    ) -> Option<(T, Origin)> {
        let names = raw::find(key)?;
        if let (Some(value), Some(flag)) = (get(self.flags), names.flag) {
            return Some((value, Origin::Flag { name: flag.to_owned() }));
        }
        if let Some(value) = get(self.environment) {
            return Some((value, Origin::Environment { name: names.variable.to_owned() }));
        }
        if let (Some(value), Some(path)) = (get(&self.file.raw), self.path) {
            let line = self.file.lines.get(key).copied();
            return Some((value, Origin::File { path: path.to_owned(), line }));
        }
        get(self.defaults).map(|value| (value, Origin::Default))
    }

    fn wrong(&mut self, key: &str, origin: &Origin, message: String) {
        self.problems.push(Problem { origin: origin.clone(), key: key.to_owned(), message });
    }

    fn checked<T: serde::Serialize, U>(
        &mut self,
        key: &'static str,
        get: impl Fn(&RawConfig) -> Option<T>,
        check: impl Fn(T) -> Result<U, String>,
    ) -> Option<U> {
        let (value, origin) = self.pick(key, get)?;
        self.rows.push(Row { key, value: json!(value), origin: origin.clone() });
        match check(value) {
            Ok(value) => Some(value),
            Err(message) => {
                self.wrong(key, &origin, format!("`{key}`: {message}"));
                None
            }
        }
    }

    /// A number within the limits of its key.
    fn count(&mut self, key: &'static str, get: impl Fn(&RawConfig) -> Option<u64>) -> Option<u64> {
        let kind = raw::find(key)?.kind;
        self.checked(key, get, |n| match kind {
            Kind::Count { least, most, .. } if (least..=most).contains(&n) => Ok(n),
            _ => Err(format!("{n} is not {}", kind.wanted())),
        })
    }

    /// A path; an empty one stands for `otherwise`.
    fn path(
        &mut self,
        key: &'static str,
        get: impl Fn(&RawConfig) -> Option<PathBuf>,
        otherwise: Option<PathBuf>,
    ) -> Option<PathBuf> {
        let (written, origin) = self.pick(key, get)?;
        let path = if written.as_os_str().is_empty() {
            otherwise
        } else {
            absolute(&written, self.base(&origin), self.places)
        };
        let shown = path.as_deref().unwrap_or(Path::new("")).to_string_lossy();
        self.rows.push(Row { key, value: json!(shown), origin });
        path
    }

    fn folders(&mut self) -> Vec<PathBuf> {
        let key = "model_folders";
        let Some((written, origin)) = self.pick(key, |raw| raw.model_folders.clone()) else {
            return Vec::new();
        };
        let base = self.base(&origin);
        let folders: Vec<PathBuf> =
            written.iter().filter_map(|path| absolute(path, base, self.places)).collect();
        let shown: Vec<_> = folders.iter().map(|path| path.to_string_lossy()).collect();
        self.rows.push(Row { key, value: json!(shown), origin });
        folders
    }

    /// Paths in a file are relative to it; all others to the current folder.
    fn base(&self, origin: &Origin) -> Option<&Path> {
        match origin {
            Origin::File { .. } => self.path.and_then(Path::parent),
            Origin::Default | Origin::Environment { .. } | Origin::Flag { .. } => None,
        }
    }
}

fn listen(text: &str) -> Result<SocketAddr, String> {
    let address = match text.strip_prefix("localhost:") {
        Some(port) => port.parse().ok().map(|port| (IpAddr::V4(Ipv4Addr::LOCALHOST), port).into()),
        None => text.parse::<SocketAddr>().ok(),
    };
    let address =
        address.ok_or_else(|| format!("`{text}` is no address and port such as 127.0.0.1:4280"))?;
    if !address.ip().is_loopback() {
        return Err(format!(
            "{} is reachable by others, and this node has no keys to tell who may use it; \
             only loopback addresses such as 127.0.0.1 or [::1] are possible",
            address.ip()
        ));
    }
    Ok(address)
}

fn spare(text: &str) -> Result<SparePolicy, String> {
    match text {
        "auto" => Ok(SparePolicy::Auto),
        "on" => Ok(SparePolicy::On),
        "off" => Ok(SparePolicy::Off),
        other => Err(format!("`{other}` is not {}", Kind::Word(SPARES).wanted())),
    }
}

fn level(text: &str) -> Result<LevelFilter, String> {
    match text {
        "error" => Ok(LevelFilter::ERROR),
        "warn" => Ok(LevelFilter::WARN),
        "info" => Ok(LevelFilter::INFO),
        "debug" => Ok(LevelFilter::DEBUG),
        "trace" => Ok(LevelFilter::TRACE),
        other => Err(format!("`{other}` is not {}", Kind::Word(LEVELS).wanted())),
    }
}

fn format(text: &str) -> Result<LogFormat, String> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        other => Err(format!("`{other}` is not {}", Kind::Word(FORMATS).wanted())),
    }
}

#[cfg(test)]
mod tests {
    use super::super::raw::KEYS;
    use super::*;
    use atelier_protocol::{ErrorBody, ErrorCode};
    use std::collections::BTreeMap;

    fn home() -> BTreeMap<&'static str, &'static str> {
        BTreeMap::from([("HOME", "/home/ada")])
    }

    fn origin_of<'a>(settings: &'a Settings, key: &str) -> &'a Origin {
        &settings.rows.iter().find(|row| row.key == key).expect("a row").origin
    }

    #[test]
    fn the_embedded_defaults_are_complete_and_valid() {
        let settings = load(&Flags::default(), &home()).unwrap();
        let names: Vec<_> = settings.rows.iter().map(|row| row.key).collect();
        let known: Vec<_> = KEYS.iter().map(|key| key.name).collect();
        assert_eq!(names, known, "each key is resolved, in the order of the list");
        assert!(settings.rows.iter().all(|row| row.origin == Origin::Default));
        let config = settings.config;
        assert_eq!(config.data, Path::new("/home/ada/.local/share/atelier"));
        assert_eq!(config.envs, Path::new("/home/ada/.local/share/atelier/envs"));
        assert_eq!(config.pictures, Path::new("/home/ada/Pictures/Atelier"));
        assert_eq!(config.listen.to_string(), "127.0.0.1:4280");
        assert_eq!(config.idle_exit, None);
        assert_eq!(config.default_model, None);
    }

    #[test]
    fn a_flag_beats_the_environment_which_beats_the_file_which_beats_the_defaults() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().to_str().unwrap();
        let file = folder.path().join("atelier.toml");
        files::write_atomic(
            &file,
            "queue_limit = 5\nmax_attempts = 5\nlisten = \"127.0.0.1:5\"\nenvs = \"e\"\n"
                .as_bytes(),
        )
        .unwrap();
        let mut env = home();
        env.insert("ATELIER_DATA", data);
        env.insert("ATELIER_LISTEN", "127.0.0.1:6");
        env.insert("ATELIER_MAX_ATTEMPTS", "6");
        let mut flags = Flags::default();
        flags.raw.listen = Some("127.0.0.1:7".to_owned());
        let settings = load(&flags, &env).unwrap();
        assert_eq!(settings.config.listen.port(), 7);
        assert_eq!(settings.config.max_attempts, 6);
        assert_eq!(settings.config.queue_limit, 5);
        assert_eq!(settings.config.envs, folder.path().join("e"), "relative to the file");
        assert_eq!(origin_of(&settings, "listen"), &Origin::Flag { name: "--listen".to_owned() });
        assert_eq!(
            origin_of(&settings, "max_attempts"),
            &Origin::Environment { name: "ATELIER_MAX_ATTEMPTS".to_owned() }
        );
        assert_eq!(
            origin_of(&settings, "queue_limit"),
            &Origin::File { path: file, line: Some(1) }
        );
        assert_eq!(origin_of(&settings, "log.level"), &Origin::Default);
    }

    #[test]
    fn every_problem_is_reported_at_once_with_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.toml");
        files::write_atomic(&file, "\nqueue_limit = 0\n[log]\nlevel = \"loud\"\n".as_bytes())
            .unwrap();
        let mut env = home();
        env.insert("ATELIER_MAX_ATTEMPTS", "many");
        env.insert("ATELIER_LISTEN", "0.0.0.0:4280");
        let flags = Flags { config: Some(file), ..Flags::default() };
        let body = ErrorBody::from(load(&flags, &env).expect_err("four problems"));
        assert_eq!(body.code, ErrorCode::ConfigInvalid);
        let fields: Vec<_> = body.details.iter().map(|detail| detail.field.as_str()).collect();
        assert_eq!(fields, ["max_attempts", "listen", "queue_limit", "log.level"]);
        assert!(body.details[1].message.contains("ATELIER_LISTEN"), "{body:?}");
        assert!(body.details[1].message.contains("no keys"), "{body:?}");
        assert!(body.details[2].message.contains("a.toml, line 2"), "{body:?}");
    }

    #[test]
    fn each_number_is_possible_up_to_its_limits_and_not_beyond() {
        let try_one = |variable, number: u64| {
            let text = number.to_string();
            let mut env = home();
            env.insert(variable, &text);
            load(&Flags::default(), &env).map(drop).map_err(|error| error.to_string())
        };
        let mut counts = 0;
        for key in KEYS {
            let Kind::Count { unit, least, most } = key.kind else { continue };
            counts += 1;
            for good in [least, most] {
                assert_eq!(try_one(key.variable, good), Ok(()), "{} = {good}", key.name);
            }
            for bad in least.checked_sub(1).into_iter().chain([most + 1]) {
                let error = try_one(key.variable, bad).expect_err("beyond the limit");
                let expected = format!(
                    "environment variable {}: `{}`: {bad} is not a whole number of {unit}, {least} to {most}",
                    key.variable, key.name
                );
                assert_eq!(error, expected);
            }
        }
        assert_eq!(counts, 6);
    }

    #[test]
    fn text_that_a_setting_cannot_be_is_refused_with_what_it_can_be() {
        for (variable, text, expected) in [
            ("ATELIER_MAX_WAIT_S", "10m", "`10m` is not a whole number of seconds, 1 to 86400"),
            ("ATELIER_QUEUE_LIMIT", "-1", "`-1` is not a whole number of jobs, 1 to 1000000"),
            ("ATELIER_WARM_START", "yes", "`yes` is not true or false"),
            ("ATELIER_WORKER_COMMAND", "[3]", "is no list of words"),
            (
                "ATELIER_LOG_LEVEL",
                "loud",
                "`log.level`: `loud` is not one of error, warn, info, debug, trace",
            ),
            ("ATELIER_LOG_FORMAT", "xml", "`log.format`: `xml` is not one of text, json"),
            ("ATELIER_LISTEN", "4280", "`4280` is no address and port such as 127.0.0.1:4280"),
        ] {
            let mut env = home();
            env.insert(variable, text);
            let error = load(&Flags::default(), &env).expect_err(variable).to_string();
            assert!(error.starts_with(&format!("environment variable {variable}: ")), "{error}");
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn only_loopback_addresses_can_be_listened_on() {
        for good in ["127.0.0.1:0", "[::1]:4280", "localhost:4280", "127.0.0.2:1"] {
            assert!(listen(good).is_ok(), "{good}");
        }
        for bad in ["0.0.0.0:4280", "[::]:4280", "192.168.1.4:4280", "example.org:80", "4280", ""] {
            assert!(listen(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_file_in_the_data_folder_cannot_move_the_data_folder() {
        let folder = tempfile::tempdir().unwrap();
        files::write_atomic(
            &folder.path().join("atelier.toml"),
            "data = \"/elsewhere\"\n".as_bytes(),
        )
        .unwrap();
        let mut flags = Flags::default();
        flags.raw.data = Some(folder.path().to_owned());
        let error = load(&flags, &home()).expect_err("refused").to_string();
        assert!(error.contains("atelier.toml, line 1: `data` cannot"), "{error}");
        // Named by hand, it may.
        flags = Flags { config: Some(folder.path().join("atelier.toml")), ..Flags::default() };
        assert_eq!(load(&flags, &home()).unwrap().config.data, Path::new("/elsewhere"));
    }

    #[test]
    fn a_named_file_that_is_missing_is_an_error_that_names_it() {
        let flags = Flags { config: Some("/nowhere/a.toml".into()), ..Flags::default() };
        let error = load(&flags, &home()).expect_err("no such file").to_string();
        assert!(error.contains("/nowhere/a.toml"), "{error}");
    }

    #[test]
    fn without_a_home_folder_data_must_be_named() {
        let env = BTreeMap::new();
        let error = load(&Flags::default(), &env).expect_err("no home").to_string();
        assert!(error.contains("--data"), "{error}");
        let env = BTreeMap::from([("ATELIER_DATA", "/srv/a"), ("ATELIER_MODELS", "/m:~/n")]);
        let config = load(&Flags::default(), &env).unwrap().config;
        assert_eq!(config.pictures, Path::new("/srv/a/pictures"));
        assert_eq!(config.model_folders[0], Path::new("/m"));
    }
}
