//! The words that a small model was taught, so that a prompt with others can be answered with a
//! warning that names them.

use std::collections::HashSet;
use std::fmt;

/// Words without content: they never need to be known.
const FUNCTION_WORDS: &[&str] = &[
    "a",
    "above",
    "an",
    "and",
    "are",
    "around",
    "as",
    "at",
    "background",
    "behind",
    "below",
    "beside",
    "between",
    "by",
    "for",
    "from",
    "front",
    "has",
    "have",
    "his",
    "her",
    "in",
    "inside",
    "into",
    "is",
    "it",
    "its",
    "near",
    "next",
    "of",
    "off",
    "on",
    "onto",
    "or",
    "out",
    "over",
    "picture",
    "image",
    "that",
    "the",
    "their",
    "there",
    "these",
    "this",
    "those",
    "to",
    "two",
    "under",
    "up",
    "very",
    "was",
    "were",
    "which",
    "with",
    "without",
];

/// Endings that English writes apart from the word, and the tokenizer too.
const CONTRACTIONS: &[&str] = &["s", "t", "re", "ve", "m", "ll", "d"];

/// The content words of a model's training captions.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Vocabulary(HashSet<String>);

impl Vocabulary {
    /// One word a line; lines that begin with `#` are comments.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let words = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
        Self(words.map(str::to_lowercase).collect())
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Content words of a prompt that the model was not taught, once each, in the order of the
    /// prompt. Singular and plural count as one word; single letters and digits as none.
    #[must_use]
    pub fn unknown(&self, prompt: &str) -> Vec<String> {
        let mut unknown = Vec::new();
        for word in words(prompt) {
            if word.chars().count() > 1 && !self.knows(&word) && !unknown.contains(&word) {
                unknown.push(word);
            }
        }
        unknown
    }

    fn knows(&self, word: &str) -> bool {
        let has = |word: &str| FUNCTION_WORDS.contains(&word) || self.0.contains(word);
        let singular = |ending: &str, instead: &str| {
            word.strip_suffix(ending)
                .is_some_and(|stem| !stem.is_empty() && has(&format!("{stem}{instead}")))
        };
        has(word)
            || singular("s", "")
            || singular("es", "")
            || singular("ies", "y")
            || has(&format!("{word}s"))
            || has(&format!("{word}es"))
            || word.strip_suffix('y').is_some_and(|stem| has(&format!("{stem}ies")))
    }
}

impl fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vocabulary({} words)", self.0.len())
    }
}

/// Runs of letters in lower case, as the tokenizer splits them: an apostrophe's ending is dropped.
fn words(prompt: &str) -> Vec<String> {
    let prompt = prompt.to_lowercase().replace('’', "'");
    let mut words = Vec::new();
    let mut after_apostrophe = false;
    for part in prompt.split_inclusive(|c: char| !c.is_alphabetic()) {
        let word = part.trim_end_matches(|c: char| !c.is_alphabetic());
        if !(word.is_empty() || after_apostrophe && CONTRACTIONS.contains(&word)) {
            words.push(word.to_owned());
        }
        after_apostrophe = part.ends_with('\'') && !word.is_empty();
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_content_words_are_named_once_and_in_order() {
        let known = Vocabulary::parse("# words\napple\nred\ncherries\nbox\nrender\nblue\n\nman\n");
        assert_eq!(known.len(), 7);
        for (prompt, expected) in [
            ("a 3d render of a red apple on a blue background", vec![]),
            ("A RED Apple, next to the apples", vec![]),
            ("a cherry in two boxes", vec![]),
            ("the man’s apple; the man's box", vec![]),
            ("a zeppelin and a Zeppelin with a submarine", vec!["zeppelin", "submarine"]),
            ("red-apple/blue_quokka99", vec!["quokka"]),
            ("", vec![]),
            ("リンゴ 🍎 1234", vec!["リンゴ"]),
            ("rock'n'roll", vec!["rock", "roll"]),
        ] {
            assert_eq!(known.unknown(prompt), expected, "{prompt}");
        }
    }

    #[test]
    fn a_word_is_not_known_for_its_ending_alone() {
        let known = Vocabulary::parse("y\n");
        assert_eq!(known.unknown("ies es"), ["ies", "es"]);
    }
}
