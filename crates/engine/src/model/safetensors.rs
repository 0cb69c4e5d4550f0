//! Reads the header of a safetensors file and believes none of it.
//!
//! A file is the length of its header (8 bytes, little endian), the header (a JSON object from
//! names to type, shape and range) and the bytes of the tensors. A header is accepted only if its
//! ranges cover these bytes exactly once, in which case nothing that follows can read outside of
//! the file. Pure but for [`read_header`], which reads the header and not one byte more; maps
//! nothing.

use crate::files;
use serde::Deserialize;
use serde::de::{MapAccess, Visitor};
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::io::Read;
use std::path::Path;

/// The format's own limit; a longer header is an attack or an accident.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;
const LENGTH_BYTES: u64 = 8;

/// A header that holds what it says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Header {
    /// In the order of their bytes in the file.
    pub tensors: Vec<Tensor>,
    pub metadata: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tensor {
    pub name: String,
    pub dtype: TensorType,
    pub shape: Vec<u64>,
    /// Place of its first byte in the file.
    pub begin: u64,
    /// Place after its last byte in the file.
    pub end: u64,
}

impl Tensor {
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.end - self.begin
    }
    /// Numbers in it; the header was checked, so the product fits.
    #[must_use]
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }
}

macro_rules! tensor_types {
    ($($name:ident = $word:literal, $bits:literal;)+) => {
        /// The types that the format knows.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum TensorType { $($name),+ }

        impl TensorType {
            /// As written in headers.
            #[must_use]
            pub fn word(self) -> &'static str {
                match self { $(Self::$name => $word),+ }
            }
            #[must_use]
            pub fn bits(self) -> u64 {
                match self { $(Self::$name => $bits),+ }
            }
            fn from_word(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$name),)+ _ => None }
            }
        }
    };
}

tensor_types! {
    Bool = "BOOL", 8;
    U8 = "U8", 8;
    I8 = "I8", 8;
    U16 = "U16", 16;
    I16 = "I16", 16;
    U32 = "U32", 32;
    I32 = "I32", 32;
    U64 = "U64", 64;
    I64 = "I64", 64;
    F16 = "F16", 16;
    Bf16 = "BF16", 16;
    F32 = "F32", 32;
    F64 = "F64", 64;
    C64 = "C64", 64;
    F8E5M2 = "F8_E5M2", 8;
    F8E4M3 = "F8_E4M3", 8;
    F8E8M0 = "F8_E8M0", 8;
    F6E2M3 = "F6_E2M3", 6;
    F6E3M2 = "F6_E3M2", 6;
    F4 = "F4", 4;
}

/// How a header is wrong. Places are counted from the start of the file.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HeaderFault {
    #[error("at byte {file_bytes}: the file ends inside the length of its header")]
    NoLength { file_bytes: u64 },
    #[error(
        "at byte 0: it claims a header of {header_bytes} bytes, and {MAX_HEADER_BYTES} are the most"
    )]
    TooLong { header_bytes: u64 },
    #[error(
        "at byte 0: it claims a header of {header_bytes} bytes, and the file ends at byte {file_bytes}"
    )]
    HeaderCut { header_bytes: u64, file_bytes: u64 },
    #[error("at byte {at}: {reason}")]
    NotJson { at: u64, reason: String },
    #[error("the tensor `{tensor}` is described twice")]
    Twice { tensor: String },
    #[error("the tensor `{tensor}` is of the unknown type `{dtype}`")]
    UnknownType { tensor: String, dtype: String },
    #[error("the tensor `{tensor}` has a shape larger than any file: {shape:?}")]
    TooLarge { tensor: String, shape: Vec<u64> },
    #[error("at byte {begin}: the tensor `{tensor}` ends before it begins")]
    Backwards { tensor: String, begin: u64 },
    #[error(
        "at byte {begin}: the tensor `{tensor}` has {given} bytes, and {dtype} {shape:?} needs {needed}"
    )]
    WrongSize {
        tensor: String,
        begin: u64,
        given: u64,
        dtype: &'static str,
        shape: Vec<u64>,
        needed: u64,
    },
    #[error(
        "the tensor `{tensor}` needs the bytes up to {end}, and the file ends at byte {file_bytes}; it may be cut off"
    )]
    OutsideFile { tensor: String, end: u64, file_bytes: u64 },
    #[error("at byte {at}: the tensors `{first}` and `{second}` overlap")]
    Overlap { at: u64, first: String, second: String },
    #[error("at byte {from}: nothing describes the bytes up to {to}")]
    Hole { from: u64, to: u64 },
}

/// Why a header could not be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReadFault {
    #[error("{0}")]
    Io(String),
    #[error(transparent)]
    Header(#[from] HeaderFault),
}

/// Reads the header of a file, and nothing of its tensors.
pub fn read_header(path: &Path) -> Result<Header, ReadFault> {
    let io = |error: std::io::Error| ReadFault::Io(error.to_string());
    let metadata = files::metadata(path).map_err(io)?;
    if !metadata.is_file() {
        // Opening a pipe would wait for its other end for ever.
        return Err(ReadFault::Io(format!("{} is not an ordinary file", path.display())));
    }
    let file_bytes = metadata.len();
    let mut file = files::open(path).map_err(io)?;
    let mut length = Vec::new();
    file.by_ref().take(LENGTH_BYTES).read_to_end(&mut length).map_err(io)?;
    let header_bytes = header_length(&length, file_bytes)?;
    let mut header = Vec::new();
    file.take(header_bytes).read_to_end(&mut header).map_err(io)?;
    Ok(parse(&header, file_bytes)?)
}

/// The length of the header from the first bytes of a file.
fn header_length(first: &[u8], file_bytes: u64) -> Result<u64, HeaderFault> {
    let Ok(length) = <[u8; 8]>::try_from(first) else {
        return Err(HeaderFault::NoLength { file_bytes });
    };
    let header_bytes = u64::from_le_bytes(length);
    if header_bytes > MAX_HEADER_BYTES {
        Err(HeaderFault::TooLong { header_bytes })
    } else if LENGTH_BYTES + header_bytes > file_bytes {
        Err(HeaderFault::HeaderCut { header_bytes, file_bytes })
    } else {
        Ok(header_bytes)
    }
}

/// Checks the header of a file of this size.
fn parse(header: &[u8], file_bytes: u64) -> Result<Header, HeaderFault> {
    if header.first() != Some(&b'{') {
        let reason = "the header does not begin with `{`".to_owned();
        return Err(HeaderFault::NotJson { at: LENGTH_BYTES, reason });
    }
    let written: Written = serde_json::from_slice(header).map_err(|error| {
        let at = LENGTH_BYTES + place(header, error.line(), error.column());
        let text = error.to_string();
        let reason = text.split(" at line ").next().unwrap_or(&text).to_owned();
        HeaderFault::NotJson { at, reason }
    })?;
    if let Some(tensor) = written.twice {
        return Err(HeaderFault::Twice { tensor });
    }
    let data = LENGTH_BYTES + header.len() as u64;
    let mut tensors = written
        .tensors
        .into_iter()
        .map(|(name, tensor)| check_one(name, tensor, data, file_bytes))
        .collect::<Result<Vec<_>, _>>()?;
    tensors.sort_by(|a, b| (a.begin, a.end, &a.name).cmp(&(b.begin, b.end, &b.name)));
    check_cover(&tensors, data, file_bytes)?;
    Ok(Header { tensors, metadata: written.metadata })
}

fn check_one(
    tensor: String,
    written: WrittenTensor,
    data: u64,
    file_bytes: u64,
) -> Result<Tensor, HeaderFault> {
    let WrittenTensor { dtype, shape, data_offsets: [begin, end] } = written;
    let Some(dtype) = TensorType::from_word(&dtype) else {
        return Err(HeaderFault::UnknownType { tensor, dtype });
    };
    let bits = shape
        .iter()
        .try_fold(1_u64, |product, side| product.checked_mul(*side))
        .and_then(|elements| elements.checked_mul(dtype.bits()));
    let Some(bits) = bits else {
        return Err(HeaderFault::TooLarge { tensor, shape });
    };
    // Ranges are written relative to the first byte after the header.
    let (begin, end) = (begin.saturating_add(data), end.saturating_add(data));
    if end < begin {
        return Err(HeaderFault::Backwards { tensor, begin });
    }
    let (given, needed) = (end - begin, bits.div_ceil(8));
    if given != needed || bits % 8 != 0 {
        let dtype = dtype.word();
        return Err(HeaderFault::WrongSize { tensor, begin, given, dtype, shape, needed });
    }
    if end > file_bytes {
        return Err(HeaderFault::OutsideFile { tensor, end, file_bytes });
    }
    Ok(Tensor { name: tensor, dtype, shape, begin, end })
}

/// Every byte after the header belongs to exactly one tensor.
fn check_cover(tensors: &[Tensor], data: u64, file_bytes: u64) -> Result<(), HeaderFault> {
    let mut covered = data;
    let mut before: Option<&Tensor> = None;
    for tensor in tensors {
        if tensor.begin < covered {
            return Err(HeaderFault::Overlap {
                at: tensor.begin,
                first: before.map_or_else(String::new, |before| before.name.clone()),
                second: tensor.name.clone(),
            });
        }
        if tensor.begin > covered {
            return Err(HeaderFault::Hole { from: covered, to: tensor.begin });
        }
        covered = tensor.end;
        before = Some(tensor);
    }
    if covered < file_bytes {
        return Err(HeaderFault::Hole { from: covered, to: file_bytes });
    }
    Ok(())
}

/// Bytes before a line and column, which serde_json counts from one.
fn place(text: &[u8], line: usize, column: usize) -> u64 {
    let start: usize = text
        .split_inclusive(|byte| *byte == b'\n')
        .take(line.saturating_sub(1))
        .map(<[u8]>::len)
        .sum();
    (start + column.saturating_sub(1)).min(text.len()) as u64
}

/// A header as written; a map would hide a name that comes twice.
struct Written {
    tensors: Vec<(String, WrittenTensor)>,
    metadata: BTreeMap<String, String>,
    twice: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenTensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

impl<'de> Deserialize<'de> for Written {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Written;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Written, A::Error> {
                let mut written =
                    Written { tensors: Vec::new(), metadata: BTreeMap::new(), twice: None };
                let mut seen = HashSet::new();
                while let Some(name) = map.next_key::<String>()? {
                    if !seen.insert(name.clone()) {
                        written.twice.get_or_insert_with(|| name.clone());
                    }
                    if name == "__metadata__" {
                        written.metadata = map.next_value()?;
                    } else {
                        written.tensors.push((name, map.next_value()?));
                    }
                }
                Ok(written)
            }
        }
        deserializer.deserialize_map(Reader)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A file with this header and so many bytes after it.
    pub(in crate::model) fn file(header: &str, data_bytes: usize) -> Vec<u8> {
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        file.extend((0..data_bytes).map(|i| u8::try_from(i % 251).unwrap()));
        file
    }

    fn read(bytes: &[u8]) -> Result<Header, HeaderFault> {
        let size = bytes.len() as u64;
        let header = header_length(&bytes[..bytes.len().min(8)], size)?;
        parse(&bytes[8..8 + usize::try_from(header).unwrap()], size)
    }

    #[test]
    fn a_good_header_gives_tensors_in_the_order_of_their_bytes() {
        let header = r#"{"__metadata__":{"format":"pt"},
            "b":{"dtype":"F16","shape":[2,3],"data_offsets":[4,16]},
            "empty":{"dtype":"F32","shape":[0,7],"data_offsets":[4,4]},
            "a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}   "#;
        let read = read(&file(header, 16)).unwrap();
        let names: Vec<&str> = read.tensors.iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["a", "empty", "b"]);
        assert_eq!(read.metadata["format"], "pt");
        let b = &read.tensors[2];
        assert_eq!((b.elements(), b.bytes(), b.end), (6, 12, 8 + header.len() as u64 + 16));
    }

    #[test]
    fn a_header_may_describe_no_tensor_at_all() {
        assert_eq!(read(&file("{}", 0)).unwrap().tensors, []);
    }

    #[test]
    fn truncated_and_lying_files_are_told_apart() {
        let f32s = |name: &str, shape: &str, begin: u64, end: u64| {
            format!(r#""{name}":{{"dtype":"F32","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
        };
        let one =
            |name: &str, shape: &str, begin, end| format!("{{{}}}", f32s(name, shape, begin, end));
        let two = |a: String, b: String| format!("{{{a},{b}}}");
        let cases: Vec<(&str, Vec<u8>, &str)> = vec![
            ("empty file", Vec::new(), "at byte 0: the file ends inside the length"),
            ("three bytes", vec![1, 2, 3], "at byte 3: the file ends inside the length"),
            (
                "giant header",
                u64::MAX.to_le_bytes().to_vec(),
                "18446744073709551615 bytes, and 100000000",
            ),
            (
                "header past the end",
                99_u64.to_le_bytes().to_vec(),
                "header of 99 bytes, and the file ends at byte 8",
            ),
            ("no header", file("", 4), "at byte 8: the header does not begin with `{`"),
            ("array", file("[]", 0), "does not begin with `{`"),
            ("space first", file(" {}", 0), "does not begin with `{`"),
            ("broken JSON", file(r#"{"a":nope}"#, 0), "at byte 14: expected ident"),
            ("cut JSON", file(r#"{"a":{"dtype":"F32""#, 0), "EOF while parsing"),
            (
                "broken JSON on a later line",
                file("{\n\n  x}", 0),
                "at byte 13: key must be a string",
            ),
            ("text after it", file("{}{}", 0), "trailing characters"),
            ("not UTF-8", [&[4, 0, 0, 0, 0, 0, 0, 0][..], b"{\"\xff\""].concat(), "at byte 10"),
            ("negative side", file(&one("a", "[-1]", 0, 4), 4), "invalid value: integer `-1`"),
            ("fractional side", file(&one("a", "[1.5]", 0, 4), 4), "invalid type: floating point"),
            (
                "three offsets",
                file(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,4]}}"#, 4),
                "at byte ",
            ),
            (
                "no shape",
                file(r#"{"a":{"dtype":"F32","data_offsets":[0,4]}}"#, 4),
                "missing field `shape`",
            ),
            (
                "unknown field",
                file(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}}"#, 4),
                "unknown field `x`",
            ),
            (
                "metadata of numbers",
                file(r#"{"__metadata__":{"a":1}}"#, 0),
                "invalid type: integer",
            ),
            (
                "unknown type",
                file(r#"{"a":{"dtype":"F31","shape":[1],"data_offsets":[0,4]}}"#, 4),
                "unknown type `F31`",
            ),
            (
                "name twice",
                file(&two(f32s("a", "[1]", 0, 4), f32s("a", "[1]", 4, 8)), 8),
                "`a` is described twice",
            ),
            (
                "shape overflows",
                file(&one("a", "[4294967296,4294967296]", 0, 4), 4),
                "larger than any file",
            ),
            (
                "bits overflow",
                file(&one("a", "[2305843009213693952]", 0, 4), 4),
                "larger than any file",
            ),
            (
                "shape too small for its range",
                file(&one("a", "[1]", 0, 8), 8),
                "has 8 bytes, and F32 [1] needs 4",
            ),
            (
                "half a byte",
                file(r#"{"a":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}}"#, 2),
                "F4 [3] needs 2",
            ),
            ("backwards", file(&one("a", "[1]", 4, 0), 4), "ends before it begins"),
            ("offsets overflow", file(&one("a", "[1]", u64::MAX - 3, u64::MAX), 4), "has 0 bytes"),
            ("data cut off", file(&one("a", "[4]", 0, 16), 10), "it may be cut off"),
            (
                "overlap",
                file(&two(f32s("a", "[2]", 0, 8), f32s("b", "[2]", 4, 12)), 12),
                "`a` and `b` overlap",
            ),
            (
                "same bytes twice",
                file(&two(f32s("a", "[1]", 0, 4), f32s("b", "[1]", 0, 4)), 4),
                "`a` and `b` overlap",
            ),
            ("hole in front", file(&one("a", "[1]", 4, 8), 8), "nothing describes the bytes"),
            (
                "hole between",
                file(&two(f32s("a", "[1]", 0, 4), f32s("b", "[1]", 8, 12)), 12),
                "nothing describes the bytes",
            ),
            ("bytes at the end", file(&one("a", "[1]", 0, 4), 5), "nothing describes the bytes"),
        ];
        for (what, bytes, expected) in cases {
            let fault = read(&bytes).expect_err(what).to_string();
            assert!(fault.contains(expected), "{what}: {fault}");
        }
        let deep = "[".repeat(10_000);
        read(&file(&format!(r#"{{"a":{deep}"#), 0)).expect_err("too deep");
    }

    #[test]
    fn a_folder_or_a_pipe_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let fault = read_header(folder.path()).expect_err("a folder");
        assert!(fault.to_string().contains("not an ordinary file"), "{fault}");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = read(&bytes);
        }

        /// A good file with a few bytes changed is refused or describes bytes that are there.
        #[test]
        fn damage_never_leads_outside_of_the_file(
            changes in prop::collection::vec((0..160_usize, any::<u8>()), 1..4),
            cut in 0..40_usize,
        ) {
            let header = r#"{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"b":{"dtype":"BF16","shape":[4],"data_offsets":[16,24]}}"#;
            let mut bytes = file(header, 24);
            for (at, value) in changes {
                let at = at % bytes.len();
                bytes[at] = value;
            }
            bytes.truncate(bytes.len() - cut);
            if let Ok(header) = read(&bytes) {
                let sum: u64 = header.tensors.iter().map(Tensor::bytes).sum();
                prop_assert!(sum <= bytes.len() as u64);
                for tensor in header.tensors {
                    prop_assert!(tensor.begin <= tensor.end && tensor.end <= bytes.len() as u64);
                    prop_assert_eq!(tensor.elements() * tensor.dtype.bits(), tensor.bytes() * 8);
                }
            }
        }
    }
}
