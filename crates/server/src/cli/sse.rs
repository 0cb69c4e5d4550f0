//! Server-sent events, read line by line. Pure: text in, events out.

use serde_json::Value;

/// One event as it came.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Received {
    pub(super) event: String,
    /// Of durable events only.
    pub(super) id: Option<u64>,
    /// Null when it is not JSON.
    pub(super) data: Value,
}

/// Collects lines into events.
#[derive(Debug, Default)]
pub(super) struct Parser {
    event: String,
    id: Option<u64>,
    data: Vec<String>,
}

impl Parser {
    /// Takes one line without its end; gives an event when the line completes one.
    pub(super) fn line(&mut self, line: &str) -> Option<Received> {
        if line.is_empty() {
            let Self { event, id, data } = std::mem::take(self);
            if data.is_empty() {
                return None; // a heartbeat
            }
            let data = serde_json::from_str(&data.join("\n")).unwrap_or_default();
            let event = if event.is_empty() { "message".to_owned() } else { event };
            return Some(Received { event, id, data });
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.event),
            "data" => self.data.push(value.to_owned()),
            "id" => self.id = value.parse().ok(),
            _ => {} // a comment has an empty field; unknown fields are ignored, as the standard wants
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(text: &str) -> Vec<Received> {
        let mut parser = Parser::default();
        text.lines().filter_map(|line| parser.line(line)).collect()
    }

    #[test]
    fn events_are_read_with_their_id_and_data() {
        let text = "event: state\ndata: {\"state\":\"running\"}\nid: 7\n\n\
                    event:progress\ndata: {\"step\":\ndata:  1}\n\n";
        let state =
            Received { event: "state".to_owned(), id: Some(7), data: json!({"state": "running"}) };
        let progress =
            Received { event: "progress".to_owned(), id: None, data: json!({"step": 1}) };
        assert_eq!(read(text), [state, progress]);
    }

    #[test]
    fn heartbeats_unknown_fields_and_unfinished_events_are_no_events() {
        assert_eq!(read(":\n\n: hello\n\nretry: 5\n\nevent: end\n\ndata: 1\n"), []);
    }
}
