//! What commands print. Answers go to stdout, everything else to stderr; text from models and requests is stripped of
//! control characters first, since a terminal would obey them.

use atelier_protocol::{ErrorBody, ErrorCode};
use serde::Serialize;
use serde_json::json;
use std::fmt::Write as _;
use std::io::{self, Write};

/// Widest line of a table.
const TABLE_COLUMNS: usize = 100;

/// Where a command's answer goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Output {
    /// JSON for programs rather than text for people.
    pub(super) json: bool,
}

impl Output {
    /// One line of the answer.
    pub(super) fn line(self, text: &str) -> Result<(), ErrorBody> {
        let mut stdout = io::stdout().lock();
        match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
            Ok(()) => Ok(()),
            // Whoever was reading has seen enough, as `head` does.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            Err(error) => {
                let message = format!("failed to write to standard output: {error}");
                Err(ErrorBody::new(ErrorCode::ArtifactNotWritable, message))
            }
        }
    }

    pub(super) fn json<T: Serialize>(self, value: &T) -> Result<(), ErrorBody> {
        let text = serde_json::to_string(value).map_err(|error| {
            ErrorBody::new(ErrorCode::Internal, format!("failed to write JSON: {error}"))
        })?;
        self.line(&text)
    }

    /// An answer in the form that was asked for.
    pub(super) fn answer<T: Serialize>(
        self,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<(), ErrorBody> {
        if self.json { self.json(value) } else { self.line(text(value).trim_end()) }
    }

    /// An error, as the last thing that a command says.
    pub(super) fn error(self, error: &ErrorBody) {
        if self.json {
            note(&json!({ "error": error }).to_string());
        } else {
            note(error_text(error).trim_end());
        }
    }
}

/// One line to stderr.
pub(super) fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}"); // there is nowhere left to complain to
}

fn error_text(error: &ErrorBody) -> String {
    let mut text = format!("Error: {}\n", plain(&error.message));
    // A single problem may be the message itself.
    for detail in error.details.iter().filter(|detail| detail.message != error.message) {
        let field =
            if detail.field.is_empty() { String::new() } else { format!("{}: ", detail.field) };
        let _ = writeln!(text, "  {}{}", plain(&field), plain(&detail.message)); // a String takes all
    }
    if !error.hint.is_empty() {
        let _ = writeln!(text, "Try: {}", plain(&error.hint));
    }
    text
}

/// Text without control characters; line ends become spaces.
pub(super) fn plain(text: &str) -> String {
    let spaced = text.chars().map(|c| if c.is_whitespace() { ' ' } else { c });
    spaced.filter(|c| !c.is_control()).collect()
}

/// A table for people. One column gives way when a line would be too long.
pub(super) struct Table {
    head: Vec<&'static str>,
    rows: Vec<Vec<String>>,
    gives_way: usize,
}

impl Table {
    pub(super) fn new(head: &[&'static str], gives_way: usize) -> Self {
        Self { head: head.to_vec(), rows: Vec::new(), gives_way }
    }
    pub(super) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells.iter().map(|cell| plain(cell)).collect());
    }
    pub(super) fn to_text(&self) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            let widest = cells.map(|cell| cell.chars().count()).max().unwrap_or(0);
            widest.max(self.head.get(column).map_or(0, |head| head.len()))
        };
        let mut widths: Vec<usize> = (0..self.head.len()).map(width).collect();
        let total = widths.iter().sum::<usize>() + 2 * widths.len().saturating_sub(1);
        if let Some(width) = widths.get_mut(self.gives_way) {
            *width = width.saturating_sub(total.saturating_sub(TABLE_COLUMNS)).max(8);
        }
        let mut text = String::new();
        let head = self.head.iter().map(|head| (*head).to_owned()).collect();
        for row in std::iter::once(&head).chain(&self.rows) {
            let cells = row.iter().zip(&widths);
            let cells: Vec<_> =
                cells.map(|(cell, &width)| format!("{:<width$}", shortened(cell, width))).collect();
            text.push_str(cells.join("  ").trim_end());
            text.push('\n');
        }
        text
    }
}

pub(super) fn shortened(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// Names and values below each other.
pub(super) fn pairs(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 2;
    let lines = pairs.iter().filter(|(_, value)| !value.is_empty());
    lines.map(|(name, value)| format!("{name:<width$}{}\n", plain(value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use atelier_protocol::Detail;

    #[test]
    fn an_error_says_what_where_and_what_to_try() {
        let error = ErrorBody::new(ErrorCode::InferenceInvalid, "two values are impossible")
            .with_details(vec![
                Detail::new("width", "100 is no multiple of 8"),
                Detail::new("", "x"),
            ])
            .with_hint("a multiple of 8");
        assert_eq!(
            error_text(&error),
            "Error: two values are impossible\n  width: 100 is no multiple of 8\n  x\n\
             Try: a multiple of 8\n"
        );
    }

    #[test]
    fn a_table_fits_a_hundred_columns_by_shortening_one() {
        let mut table = Table::new(&["ID", "TITLE", "STATE"], 1);
        table.row(vec!["a".repeat(20), "t".repeat(200), "ready".to_owned()]);
        table.row(vec!["b".to_owned(), "ü".to_owned(), String::new()]);
        let text = table.to_text();
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
        assert!(text.contains("t…  ready"), "{text}");
        assert!(text.lines().all(|line| !line.ends_with(' ')), "{text}");
    }

    #[test]
    fn a_terminal_is_not_given_orders() {
        assert_eq!(plain("a\u{1b}[31mred\r\nb\tc"), "a[31mred  b c");
    }
}
