//! The one file that reads the environment, through a trait so that tests pass a map.

use super::raw::{KEYS, RawConfig, nearest_variable};
use super::{Origin, Problem};
use atelier_engine::files;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Names the file to use when `--config` does not.
pub const CONFIG_VARIABLE: &str = "ATELIER_CONFIG";
/// Names the node to talk to when `--node` does not.
pub const NODE_VARIABLE: &str = "ATELIER_NODE";

/// Where variables come from.
pub trait Environment {
    /// The value, when it is set to something; text that is not Unicode counts as its lossy form.
    fn var(&self, name: &str) -> Option<String>;
    /// The names of all variables that are set.
    fn names(&self) -> Vec<String>;
}

/// The variables of this process.
pub struct ProcessEnvironment;

impl Environment for ProcessEnvironment {
    #[expect(clippy::disallowed_methods, reason = "this is the one reader that the ban points to")]
    fn var(&self, name: &str) -> Option<String> {
        let value = std::env::var_os(name)?.to_string_lossy().into_owned();
        Some(value).filter(|text| !text.is_empty())
    }
    fn names(&self) -> Vec<String> {
        std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned()).collect()
    }
}

impl Environment for BTreeMap<&str, &str> {
    fn var(&self, name: &str) -> Option<String> {
        self.get(name).filter(|text| !text.is_empty()).map(|text| (*text).to_owned())
    }
    fn names(&self) -> Vec<String> {
        self.keys().map(|name| (*name).to_owned()).collect()
    }
}

/// What the platform says about where things belong.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Places {
    pub home: Option<PathBuf>,
    /// Folder for the data of programs.
    pub data_home: Option<PathBuf>,
    /// Folder for pictures.
    pub pictures: Option<PathBuf>,
}

impl Places {
    pub fn from(env: &dyn Environment) -> Self {
        // The XDG rules: a relative path is to be ignored.
        let absolute =
            |name: &str| env.var(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let home = absolute("HOME");
        let below_home = |rest: &str| home.as_ref().map(|home| home.join(rest));
        let data_home = absolute("XDG_DATA_HOME").or_else(|| below_home(".local/share"));
        let pictures = absolute("XDG_CONFIG_HOME")
            .or_else(|| below_home(".config"))
            .and_then(|folder| files::read_to_string(&folder.join("user-dirs.dirs")).ok())
            .and_then(|text| pictures_in(&text, home.as_deref()))
            .or_else(|| below_home("Pictures"));
        Self { home, data_home, pictures }
    }
}

/// The pictures folder that a desktop wrote into its `user-dirs.dirs`.
fn pictures_in(text: &str, home: Option<&Path>) -> Option<PathBuf> {
    let value = text.lines().find_map(|line| line.trim().strip_prefix("XDG_PICTURES_DIR="))?;
    let value = value.trim().trim_matches('"');
    let path = match value.strip_prefix("$HOME") {
        Some(rest) => home?.join(rest.trim_start_matches('/')),
        None => PathBuf::from(value),
    };
    // A desktop without a pictures folder names the home folder itself.
    (path.is_absolute() && Some(path.as_path()) != home).then_some(path)
}

/// The settings among the variables, what is wrong with them, and what looks like a slip.
pub(super) fn layer(env: &dyn Environment) -> (RawConfig, Vec<Problem>, Vec<String>) {
    let mut raw = RawConfig::default();
    let mut problems = Vec::new();
    for key in KEYS {
        let Some(text) = env.var(key.variable) else { continue };
        if let Err(message) = raw.set(key.name, &text) {
            let origin = Origin::Environment { name: key.variable.to_owned() };
            problems.push(Problem { origin, key: key.name.to_owned(), message });
        }
    }
    // Not an error: another program may own a name that starts like ours.
    let mut warnings: Vec<String> = env
        .names()
        .iter()
        .filter_map(|name| {
            let nearest = nearest_variable(name)?;
            Some(format!("environment variable {name} is not known; did you mean {nearest}?"))
        })
        .collect();
    warnings.sort();
    (raw, problems, warnings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pictures_folder_is_the_one_that_the_desktop_names() {
        let home = Path::new("/home/ada");
        let text = "# comment\nXDG_MUSIC_DIR=\"$HOME/Music\"\nXDG_PICTURES_DIR=\"$HOME/Bilder\"\n";
        assert_eq!(pictures_in(text, Some(home)), Some(PathBuf::from("/home/ada/Bilder")));
        assert_eq!(
            pictures_in("XDG_PICTURES_DIR=\"/data/pics\"", Some(home)),
            Some(PathBuf::from("/data/pics"))
        );
        assert_eq!(pictures_in("XDG_PICTURES_DIR=\"$HOME/\"", Some(home)), None);
        assert_eq!(pictures_in("", Some(home)), None);
    }

    #[test]
    fn relative_platform_folders_are_ignored() {
        let env = BTreeMap::from([("HOME", "/home/ada"), ("XDG_DATA_HOME", "data")]);
        assert_eq!(Places::from(&env).data_home, Some(PathBuf::from("/home/ada/.local/share")));
    }

    #[test]
    fn a_misspelt_variable_is_named_with_the_right_one() {
        let env = BTreeMap::from([("ATELIER_LISTEM", "x"), ("ATELIER_OTHER_PROGRAM", "x")]);
        let (_, problems, warnings) = layer(&env);
        assert_eq!(problems, []);
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains("ATELIER_LISTEN"), "{warnings:?}");
    }
}
