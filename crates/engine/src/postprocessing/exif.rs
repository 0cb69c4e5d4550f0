//! Just enough EXIF: two texts and the name of the software, written and read back.
//!
//! Big-endian throughout, as the tools write that established UTF-16 in `UserComment`. The reader follows offsets only
//! inside the bytes that it was given, visits two directories and no more, and never fails: what it cannot follow is
//! not there.

use std::ops::Range;

const IMAGE_DESCRIPTION: u16 = 0x010e;
const SOFTWARE: u16 = 0x0131;
const EXIF_DIRECTORY: u16 = 0x8769;
const EXIF_VERSION: u16 = 0x9000;
const USER_COMMENT: u16 = 0x9286;

const ASCII: u16 = 2;
const LONG: u16 = 4;
const UNDEFINED: u16 = 7;

const HEADER_BYTES: usize = 8;
const ENTRY_BYTES: usize = 12;
/// Entries of one directory that a reader looks at.
const MAX_ENTRIES: usize = 512;

/// What an EXIF block says, as far as we care.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Exif {
    /// ASCII.
    pub(super) description: Option<String>,
    pub(super) software: Option<String>,
    /// Any text.
    pub(super) comment: Option<String>,
}

struct Entry {
    tag: u16,
    kind: u16,
    count: usize,
    value: Vec<u8>,
}

impl Entry {
    fn ascii(tag: u16, text: &str) -> Self {
        let mut value = text.replace(|c: char| !c.is_ascii() || c == '\0', "?").into_bytes();
        value.push(0);
        Self { tag, kind: ASCII, count: value.len(), value }
    }
    fn undefined(tag: u16, value: Vec<u8>) -> Self {
        Self { tag, kind: UNDEFINED, count: value.len(), value }
    }
}

impl Exif {
    /// The TIFF structure that all containers share, without any prefix of theirs.
    pub(super) fn to_tiff(&self) -> Vec<u8> {
        let mut main = Vec::new();
        main.extend(self.description.as_deref().map(|text| Entry::ascii(IMAGE_DESCRIPTION, text)));
        main.extend(self.software.as_deref().map(|text| Entry::ascii(SOFTWARE, text)));
        let mut exif = vec![Entry::undefined(EXIF_VERSION, b"0232".to_vec())];
        if let Some(comment) = &self.comment {
            let mut value = b"UNICODE\0".to_vec();
            value.extend(comment.encode_utf16().flat_map(u16::to_be_bytes));
            exif.push(Entry::undefined(USER_COMMENT, value));
        }
        let pointer = |to: usize| Entry {
            tag: EXIF_DIRECTORY,
            kind: LONG,
            count: 1,
            value: offset(to).to_vec(),
        };
        main.push(pointer(0));
        let exif_start = HEADER_BYTES + directory(&main, HEADER_BYTES).len();
        main.pop();
        main.push(pointer(exif_start));

        let mut tiff = b"MM\0*\0\0\0\x08".to_vec();
        tiff.extend(directory(&main, HEADER_BYTES));
        tiff.extend(directory(&exif, exif_start));
        tiff
    }

    /// Reads a TIFF structure of either byte order, with or without the prefix that some containers give it.
    pub(super) fn from_tiff(bytes: &[u8]) -> Self {
        let tiff = bytes.strip_prefix(b"Exif\0\0").unwrap_or(bytes);
        Tiff::new(tiff).and_then(|tiff| tiff.exif()).unwrap_or_default()
    }
}

/// A directory that begins at `start`, with its values behind it. Entries come in the order of their tags.
fn directory(entries: &[Entry], start: usize) -> Vec<u8> {
    let count = u16::try_from(entries.len()).expect("a handful of entries");
    let mut table = count.to_be_bytes().to_vec();
    let mut values: Vec<u8> = Vec::new();
    let values_start = start + 2 + entries.len() * ENTRY_BYTES + 4;
    for entry in entries {
        table.extend(entry.tag.to_be_bytes());
        table.extend(entry.kind.to_be_bytes());
        table.extend(offset(entry.count));
        if entry.value.len() <= 4 {
            let mut inline = entry.value.clone();
            inline.resize(4, 0);
            table.extend(inline);
        } else {
            table.extend(offset(values_start + values.len()));
            values.extend(&entry.value);
            if values.len() % 2 == 1 {
                values.push(0); // values begin at even places
            }
        }
    }
    table.extend([0; 4]); // no directory after this one
    table.extend(values);
    table
}

fn offset(bytes: usize) -> [u8; 4] {
    u32::try_from(bytes).expect("texts of a request are far below 4 GiB").to_be_bytes()
}

struct Tiff<'b> {
    bytes: &'b [u8],
    big_endian: bool,
}

impl<'b> Tiff<'b> {
    fn new(bytes: &'b [u8]) -> Option<Self> {
        let big_endian = match bytes.get(..4)? {
            b"MM\0*" => true,
            b"II*\0" => false,
            _ => return None,
        };
        Some(Self { bytes, big_endian })
    }

    fn exif(&self) -> Option<Exif> {
        let main = self.long(4)?;
        let text = |tag| {
            let value = self.bytes.get(self.find(main, tag)?)?;
            let end = value.iter().position(|&b| b == 0).unwrap_or(value.len());
            Some(String::from_utf8_lossy(&value[..end]).into_owned())
        };
        let exif = self.find(main, EXIF_DIRECTORY).and_then(|value| self.long(value.start));
        let comment = exif
            .and_then(|directory| self.find(directory, USER_COMMENT))
            .and_then(|value| self.bytes.get(value))
            .and_then(|value| self.comment(value));
        Some(Exif { description: text(IMAGE_DESCRIPTION), software: text(SOFTWARE), comment })
    }

    /// Where the value of a tag is. May lie outside the bytes.
    fn find(&self, directory: usize, tag: u16) -> Option<Range<usize>> {
        let entries = usize::from(self.short(directory)?).min(MAX_ENTRIES);
        let first = directory.checked_add(2)?;
        (0..entries).map(|entry| first + entry * ENTRY_BYTES).find_map(|entry| {
            if self.short(entry)? != tag {
                return None;
            }
            let unit = match self.short(entry + 2)? {
                1 | 2 | 6 | 7 => 1,
                3 | 8 => 2,
                4 | 9 | 11 => 4,
                5 | 10 | 12 => 8,
                _ => return None,
            };
            let bytes = self.long(entry + 4)?.checked_mul(unit)?;
            let start = if bytes <= 4 { entry + 8 } else { self.long(entry + 8)? };
            Some(start..start.checked_add(bytes)?)
        })
    }

    /// Eight bytes name the encoding, the text follows.
    fn comment(&self, value: &[u8]) -> Option<String> {
        let (encoding, text) = value.split_at_checked(8)?;
        let text = if encoding == b"UNICODE\0" {
            utf16(text, self.big_endian)
        } else {
            String::from_utf8_lossy(text).into_owned()
        };
        Some(text.trim_end_matches('\0').to_owned())
    }

    fn short(&self, at: usize) -> Option<u16> {
        let bytes = self.bytes.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(if self.big_endian { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) })
    }

    fn long(&self, at: usize) -> Option<usize> {
        let bytes = self.bytes.get(at..at.checked_add(4)?)?.try_into().ok()?;
        let long =
            if self.big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) };
        usize::try_from(long).ok()
    }
}

/// Writers disagree whether the text follows the byte order of the file, so the text itself is asked: settings lines are
/// mostly ASCII, and in the wrong order ASCII has its zeroes on the wrong side.
fn utf16(text: &[u8], file_is_big_endian: bool) -> String {
    let zeroes = |side: usize| text.iter().skip(side).step_by(2).filter(|&&b| b == 0).count();
    let (high_first, high_last) = (zeroes(0), zeroes(1));
    let big_endian =
        if high_first == high_last { file_is_big_endian } else { high_first > high_last };
    let unit = if big_endian { u16::from_be_bytes } else { u16::from_le_bytes };
    let units = text.as_chunks::<2>().0.iter().map(|&pair| unit(pair));
    char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn exif(description: &str, comment: &str) -> Exif {
        Exif {
            description: Some(description.to_owned()),
            software: Some("Atelier".to_owned()),
            comment: Some(comment.to_owned()),
        }
    }

    #[test]
    fn texts_of_every_length_come_back() {
        for text in ["", "a", "abc", "abcd", "abcde"] {
            let exif = exif(text, text);
            assert_eq!(Exif::from_tiff(&exif.to_tiff()), exif, "{text:?}");
        }
        let only_software = Exif { software: Some("Atelier".to_owned()), ..Exif::default() };
        assert_eq!(Exif::from_tiff(&only_software.to_tiff()), only_software);
    }

    #[test]
    fn comments_in_the_other_byte_order_are_understood() {
        // A little-endian file whose comment is big-endian, as some writers do, and one that is consistent.
        for text_is_big_endian in [true, false] {
            let mut tiff = b"II*\0\x08\0\0\0".to_vec();
            tiff.extend(*b"\x01\0\x69\x87\x04\0\x01\0\0\0\x1a\0\0\0\0\0\0\0");
            tiff.extend(*b"\x01\0\x86\x92\x07\0\x14\0\0\0\x2c\0\0\0\0\0\0\0UNICODE\0");
            for unit in "Steps:".encode_utf16() {
                tiff.extend(if text_is_big_endian {
                    unit.to_be_bytes()
                } else {
                    unit.to_le_bytes()
                });
            }
            let read = Exif::from_tiff(&tiff);
            assert_eq!(read.comment.as_deref(), Some("Steps:"), "{text_is_big_endian}");
        }
    }

    proptest! {
        #[test]
        fn any_text_comes_back(comment in "\\PC{0,80}") {
            // Mostly ASCII, as the settings line makes every real one.
            let settings = "Steps: 20, Sampler: DDIM, CFG scale: 4, Seed: 3, Size: 128x128";
            let comment = format!("{comment}\n{settings}, Version: Atelier 0.1.0");
            let exif = exif("ascii", &comment);
            prop_assert_eq!(Exif::from_tiff(&exif.to_tiff()), exif);
        }

        #[test]
        fn damage_is_survived(
            cut in any::<prop::sample::Index>(),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
        ) {
            let mut tiff = exif("description", "a comment").to_tiff();
            let place = at.index(tiff.len());
            tiff[place] = byte;
            tiff.truncate(cut.index(tiff.len()) + 1);
            let read = Exif::from_tiff(&tiff);
            prop_assert!(read.comment.is_none_or(|text| text.len() <= 3 * tiff.len()));
        }

        #[test]
        fn noise_is_survived(noise in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut tiff = b"MM\0*\0\0\0\x08".to_vec();
            tiff.extend(noise);
            let read = Exif::from_tiff(&tiff);
            prop_assert!(read.comment.is_none_or(|text| text.len() <= 3 * tiff.len()));
        }
    }
}
