//! Lines in: bytes to messages, with every limit of the protocol. Pure, so that it can be fuzzed.

use atelier_protocol::worker::{FromWorker, MAX_LINE_BYTES};

/// What one line turned out to be.
#[derive(Clone, PartialEq, Debug)]
pub enum Decoded {
    Message(Box<FromWorker>),
    /// The line is dropped and counted; the channel goes on.
    Refused(String),
}

/// Cuts a byte stream into lines and decodes each. A line over the limit is skipped to its end without being stored.
#[derive(Debug, Default)]
pub struct LineDecoder {
    buffer: Vec<u8>,
    skipping: bool,
}

impl LineDecoder {
    /// Feeds bytes as they arrived and returns what they completed.
    pub fn push(&mut self, mut bytes: &[u8]) -> Vec<Decoded> {
        let mut out = Vec::new();
        while let Some(end) = bytes.iter().position(|&b| b == b'\n') {
            let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
            bytes = rest;
            if std::mem::take(&mut self.skipping) {
                continue;
            }
            self.buffer.extend_from_slice(line);
            let line = std::mem::take(&mut self.buffer);
            if line.len() > MAX_LINE_BYTES {
                out.push(too_long());
            } else if !line.trim_ascii().is_empty() {
                out.push(decode(&line));
            }
        }
        if !self.skipping {
            self.buffer.extend_from_slice(bytes);
            if self.buffer.len() > MAX_LINE_BYTES {
                self.buffer = Vec::new();
                self.skipping = true;
                out.push(too_long());
            }
        }
        out
    }
}

fn too_long() -> Decoded {
    Decoded::Refused(format!("a line is longer than {MAX_LINE_BYTES} bytes"))
}

fn decode(line: &[u8]) -> Decoded {
    match std::str::from_utf8(line) {
        Err(error) => Decoded::Refused(format!("a line is not UTF-8: {error}")),
        Ok(text) => match serde_json::from_str(text) {
            Ok(message) => Decoded::Message(Box::new(message)),
            Err(error) => Decoded::Refused(format!("a line is no message: {error}")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BYE: &[u8] = b"{\"type\":\"bye\"}\n";

    fn bye() -> Decoded {
        Decoded::Message(Box::new(FromWorker::Bye {}))
    }

    #[test]
    fn a_message_may_arrive_in_pieces() {
        let mut decoder = LineDecoder::default();
        assert_eq!(decoder.push(&BYE[..5]), []);
        assert_eq!(decoder.push(&BYE[5..]), [bye()]);
    }

    #[test]
    fn a_line_over_the_limit_is_refused_once_and_the_next_one_is_read() {
        let mut decoder = LineDecoder::default();
        let mut refused = 0;
        for _ in 0..11 {
            refused += decoder.push(&vec![b'x'; 1 << 20]).len();
        }
        assert_eq!(refused, 1);
        assert!(decoder.buffer.is_empty(), "a line that is skipped must not be stored");
        assert_eq!(decoder.push(b"tail\n"), []);
        assert_eq!(decoder.push(BYE), [bye()]);
    }

    #[test]
    fn garbage_is_refused_with_a_reason_and_blank_lines_are_nothing() {
        let mut decoder = LineDecoder::default();
        let lines = decoder.push(b"\xff\xfe\n\n\r\nhello\n{\"type\":\"nonsense\"}\n");
        assert_eq!(lines.len(), 3);
        assert!(lines.iter().all(|line| matches!(line, Decoded::Refused(_))), "{lines:?}");
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_leave_the_decoder_able_to_read_the_next_line(
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..40)
        ) {
            let mut decoder = LineDecoder::default();
            for piece in &pieces {
                decoder.push(piece);
            }
            decoder.push(b"\n");
            prop_assert_eq!(decoder.push(BYE), vec![bye()]);
        }
    }
}
