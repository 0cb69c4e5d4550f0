//! Where pictures go and what they are called. The choosing half is pure; only `Destination::check` and `save` touch
//! the disk.

use atelier_engine::files;
use atelier_protocol::{Detail, ErrorBody, ErrorCode};
use jiff::Zoned;
use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};

/// Longest part of a file name that comes from the prompt.
const SLUG_CHARS: usize = 40;
/// Endings that a picture may have, and the format that each stands for.
const ENDINGS: [(&str, &str); 4] =
    [("png", "png"), ("jpg", "jpeg"), ("jpeg", "jpeg"), ("webp", "webp")];

/// Where the pictures of one call go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Destination {
    /// Into this folder, under names of our own, never over a file that is there.
    Folder(PathBuf),
    /// Exactly here, over what is there.
    File(PathBuf),
}

/// What `--out` and `--format` amount to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Plan {
    pub(super) destination: Destination,
    /// For the request; the node's default when absent.
    pub(super) format: Option<String>,
}

/// Chooses. `is_folder` tells whether a path is a folder that exists.
pub(super) fn plan(
    out: Option<&Path>,
    format: Option<&str>,
    pictures: &Path,
    now: &Zoned,
    is_folder: impl Fn(&Path) -> bool,
) -> Result<Plan, ErrorBody> {
    let format = format.map(str::to_owned);
    let Some(out) = out else {
        let day = now.strftime("%Y-%m-%d").to_string();
        return Ok(Plan { destination: Destination::Folder(pictures.join(day)), format });
    };
    let says_folder = out.as_os_str().as_encoded_bytes().ends_with(b"/");
    if says_folder || is_folder(out) {
        return Ok(Plan { destination: Destination::Folder(out.to_owned()), format });
    }
    let refuse = |message: String| {
        let details = vec![Detail::new("out", message.clone())];
        Err(ErrorBody::new(ErrorCode::RequestInvalid, message).with_details(details))
    };
    if out.file_name().is_none() {
        return refuse(format!("{} names no file", out.display()));
    }
    let destination = Destination::File(out.to_owned());
    let Some(ending) = out.extension().map(|ending| ending.to_string_lossy().to_lowercase()) else {
        return Ok(Plan { destination, format });
    };
    let Some((_, meant)) = ENDINGS.iter().find(|(known, _)| *known == ending) else {
        return refuse(format!(
            "{} ends in .{ending}, which is no picture format here; .png, .jpg and .webp are",
            out.display()
        ));
    };
    match format {
        Some(given) if given != *meant => {
            refuse(format!("{} ends in .{ending}, but --format says {given}", out.display()))
        }
        _ => Ok(Plan { destination, format: Some((*meant).to_owned()) }),
    }
}

/// What one picture's name is made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Naming<'a> {
    /// When the call was made.
    pub(super) at: &'a Zoned,
    pub(super) prompt: &'a str,
    /// Pictures of the job.
    pub(super) count: u32,
}

impl Destination {
    /// Whether a picture could be written here, asked before any work is done. Leaves nothing behind.
    pub(super) fn check(&self) -> Result<(), ErrorBody> {
        let (folder, must_exist) = match self {
            Self::Folder(folder) => (folder.as_path(), false),
            Self::File(file) => (parent(file), true),
        };
        if let Self::File(file) = self
            && file.is_dir()
        {
            return Err(not_writable(file, "it is a folder"));
        }
        let Some(existing) = folder.ancestors().find(|path| path.exists() || is_here(path)) else {
            return Err(not_writable(folder, "no part of this path exists"));
        };
        if must_exist && existing != folder {
            return Err(not_writable(folder, "there is no such folder"));
        }
        let existing = if is_here(existing) { Path::new(".") } else { existing };
        if !existing.is_dir() {
            return Err(not_writable(existing, "it is not a folder"));
        }
        let probe = existing.join(format!(".atelier-{}", uuid::Uuid::now_v7().simple()));
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&probe)
            .and_then(|_| files::remove_file(&probe))
            .map_err(|error| not_writable(existing, &error.to_string()))
    }

    /// Writes one picture and gives its path.
    pub(super) fn save(
        &self,
        naming: Naming<'_>,
        seed: u64,
        ending: &str,
        bytes: &[u8],
    ) -> Result<PathBuf, ErrorBody> {
        match self {
            Self::File(file) => {
                let path = if naming.count > 1 { numbered(file, seed) } else { file.clone() };
                files::write_atomic(&path, bytes)
                    .map_err(|error| not_writable(&path, &error.to_string()))?;
                Ok(path)
            }
            Self::Folder(folder) => {
                let path = files::create_dir_all(folder)
                    .and_then(|()| reserve(folder, &stem(naming, seed), ending))
                    .map_err(|error| not_writable(folder, &error.to_string()))?;
                files::write_atomic(&path, bytes).map_err(|error| {
                    let _ = files::remove_file(&path); // the empty file that held the name
                    not_writable(&path, &error.to_string())
                })?;
                Ok(path)
            }
        }
    }
}

/// The folder of a file; the current one for a bare name.
fn parent(file: &Path) -> &Path {
    file.parent().unwrap_or(Path::new(""))
}

fn is_here(path: &Path) -> bool {
    path.as_os_str().is_empty()
}

fn not_writable(path: &Path, problem: &str) -> ErrorBody {
    let shown = if is_here(path) { Path::new(".") } else { path };
    let message = format!("failed to write a picture to {}: {problem}", shown.display());
    ErrorBody::new(ErrorCode::ArtifactNotWritable, message)
}

/// Takes the first free name by making an empty file of it, so that two calls at once cannot take the same one.
fn reserve(folder: &Path, stem: &str, ending: &str) -> io::Result<PathBuf> {
    for number in 1_u32.. {
        let name = match number {
            1 => format!("{stem}.{ending}"),
            _ => format!("{stem}-{number}.{ending}"),
        };
        let path = folder.join(name);
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(_) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::from(io::ErrorKind::AlreadyExists))
}

fn stem(naming: Naming<'_>, seed: u64) -> String {
    format!("{}-{}-{seed}", naming.at.strftime("%H%M%S"), slug(naming.prompt))
}

/// `FILE-SEED.ending`.
fn numbered(file: &Path, seed: u64) -> PathBuf {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    let name = match file.extension() {
        Some(ending) => format!("{stem}-{seed}.{}", ending.to_string_lossy()),
        None => format!("{stem}-{seed}"),
    };
    file.with_file_name(name)
}

/// The words of a prompt as a part of a file name.
fn slug(prompt: &str) -> String {
    let mut slug = String::new();
    for c in prompt.to_lowercase().chars() {
        if slug.chars().count() == SLUG_CHARS {
            break;
        }
        if c.is_alphanumeric() {
            slug.push(c);
        } else if !slug.is_empty() && !slug.ends_with('-') {
            slug.push('-');
        }
    }
    let slug = slug.trim_end_matches('-');
    if slug.is_empty() { "picture".to_owned() } else { slug.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noon() -> Zoned {
        "2026-03-01T12:34:56+00:00[UTC]".parse().unwrap()
    }

    fn planned(out: &str, format: Option<&str>) -> Result<Plan, String> {
        let is_folder = |path: &Path| path == Path::new("there");
        plan(Some(Path::new(out)), format, Path::new("/p"), &noon(), is_folder)
            .map_err(|error| error.message)
    }

    #[test]
    fn without_out_pictures_go_to_the_pictures_folder_by_day() {
        let plan = plan(None, None, Path::new("/p/Atelier"), &noon(), |_| false).unwrap();
        assert_eq!(plan.destination, Destination::Folder("/p/Atelier/2026-03-01".into()));
        assert_eq!(plan.format, None);
    }

    #[test]
    fn out_is_a_folder_when_it_is_one_or_says_so_and_a_file_otherwise() {
        assert_eq!(
            planned("there", None).unwrap().destination,
            Destination::Folder("there".into())
        );
        assert_eq!(planned("new/", None).unwrap().destination, Destination::Folder("new/".into()));
        assert_eq!(planned("a.png", None).unwrap().destination, Destination::File("a.png".into()));
        assert_eq!(planned("a", None).unwrap().destination, Destination::File("a".into()));
    }

    #[test]
    fn the_ending_chooses_the_format_and_must_not_contradict_it() {
        let format = |out: &str, given| planned(out, given).map(|plan| plan.format);
        assert_eq!(format("a.JPG", None), Ok(Some("jpeg".to_owned())));
        assert_eq!(format("a.jpeg", Some("jpeg")), Ok(Some("jpeg".to_owned())));
        assert_eq!(format("a.webp", None), Ok(Some("webp".to_owned())));
        assert_eq!(format("a", Some("webp")), Ok(Some("webp".to_owned())));
        assert!(format("a.jpg", Some("png")).unwrap_err().contains("--format says png"));
        assert!(format("a.gif", None).unwrap_err().contains(".gif"));
        assert!(format("..", None).unwrap_err().contains("names no file"));
    }

    #[test]
    fn names_tell_time_words_and_seed() {
        let at = noon();
        let naming = Naming { at: &at, prompt: "A red  apple, on/blue!", count: 1 };
        assert_eq!(stem(naming, 3), "123456-a-red-apple-on-blue-3");
        assert_eq!(slug("  ../..  "), "picture");
        assert_eq!(slug("Äpfel und Öl"), "äpfel-und-öl");
        assert_eq!(slug(&"word ".repeat(40)).chars().count(), 39, "cut, and no dash at the end");
    }

    #[test]
    fn names_of_our_own_never_go_over_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let destination = Destination::Folder(folder.path().join("new"));
        destination.check().unwrap();
        assert!(!folder.path().join("new").exists(), "checking leaves nothing behind");
        let at = noon();
        let naming = Naming { at: &at, prompt: "x", count: 1 };
        let saved: Vec<_> = (0_u8..3)
            .map(|i| destination.save(naming, 7, "png", &[i]).unwrap())
            .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
            .collect();
        assert_eq!(saved, ["123456-x-7.png", "123456-x-7-2.png", "123456-x-7-3.png"]);
        let first = folder.path().join("new/123456-x-7.png");
        assert_eq!(files::read(&first).unwrap(), [0]);
    }

    #[test]
    fn a_named_file_is_written_there_and_several_get_their_seed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.png");
        let destination = Destination::File(file.clone());
        destination.check().unwrap();
        let at = noon();
        let one = Naming { at: &at, prompt: "x", count: 1 };
        assert_eq!(destination.save(one, 7, "png", b"1").unwrap(), file);
        assert_eq!(destination.save(one, 7, "png", b"2").unwrap(), file);
        assert_eq!(files::read(&file).unwrap(), b"2");
        let two = Naming { count: 2, ..one };
        assert_eq!(destination.save(two, 8, "png", b"3").unwrap(), folder.path().join("a-8.png"));
    }

    #[test]
    fn a_place_that_cannot_be_written_is_refused_before_any_work() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        files::write_atomic(&file, b"").unwrap();
        for wrong in [
            Destination::File(folder.path().join("missing/a.png")),
            Destination::File(file.join("a.png")),
            Destination::Folder(file.join("sub")),
            Destination::Folder(PathBuf::from("/proc/nowhere")),
        ] {
            let error = wrong.check().expect_err("not writable");
            assert_eq!(error.code, ErrorCode::ArtifactNotWritable, "{error}");
        }
    }
}
