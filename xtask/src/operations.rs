//! `contract/operations.toml`: what a user can do, held against what the program has, and the README's table of it.

use anyhow::{Context, Result};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

pub const FILE: &str = "contract/operations.toml";

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct Table {
    operation: Vec<Operation>,
}

/// One operation. The head of the file says what each field means.
#[derive(Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct Operation {
    pub id: String,
    pub domain: Domain,
    pub title: String,
    pub state: State,
    pub built: Option<String>,
    pub missing: Option<String>,
    #[serde(default)]
    pub routes: Vec<String>,
    #[serde(default)]
    pub within: Vec<String>,
    #[serde(default)]
    pub cli: Vec<String>,
    #[serde(default)]
    pub job_kinds: Vec<String>,
    #[serde(default)]
    pub tests: Vec<String>,
    pub document: Option<String>,
    pub latency: Latency,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[serde(rename_all = "snake_case")]
pub enum Domain {
    Device,
    Memory,
    Model,
    Processing,
    Inference,
    Postprocessing,
    Node,
}

impl Domain {
    const ALL: [(Self, &'static str, &'static str); 7] = [
        (Self::Device, "D", "Devices"),
        (Self::Memory, "M", "Memory"),
        (Self::Model, "Mo", "Models"),
        (Self::Processing, "P", "Jobs"),
        (Self::Inference, "I", "Pictures"),
        (Self::Postprocessing, "PP", "Finishing"),
        (Self::Node, "N", "The node"),
    ];
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Built,
    Partly,
    NotYet,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "snake_case")]
pub enum Latency {
    Instant,
    Short,
    Job,
}

/// What the program has, to compare with.
#[derive(Clone, Debug)]
pub struct Program {
    /// `METHOD /path`.
    pub routes: BTreeSet<String>,
    /// Commands that do something, each with its flags: `jobs list` → `--limit`, …
    pub commands: BTreeMap<String, BTreeSet<String>>,
    pub job_kinds: BTreeSet<String>,
}

impl Program {
    /// As this build has it.
    #[must_use]
    pub fn built() -> Self {
        let routes = atelier_server::http::ROUTES;
        let mut commands = BTreeMap::new();
        for command in atelier_server::cli::definition().get_subcommands() {
            collect(command, "", &mut commands);
        }
        Self {
            routes: routes.iter().map(|row| format!("{} {}", row.method, row.path)).collect(),
            commands,
            job_kinds: atelier_engine::inference::KINDS.map(str::to_owned).into(),
        }
    }
}

fn collect(
    command: &clap::Command,
    above: &str,
    commands: &mut BTreeMap<String, BTreeSet<String>>,
) {
    let name = format!("{above}{}", command.get_name());
    if command.has_subcommands() {
        for inner in command.get_subcommands() {
            collect(inner, &format!("{name} "), commands);
        }
    } else {
        let flags = command.get_arguments().filter_map(|argument| argument.get_long());
        commands.insert(name, flags.map(|flag| format!("--{flag}")).collect());
    }
}

pub fn read(root: &Path) -> Result<Vec<Operation>> {
    let text = std::fs::read_to_string(root.join(FILE)).with_context(|| format!("read {FILE}"))?;
    let table: Table = toml::from_str(&text).with_context(|| format!("understand {FILE}"))?;
    Ok(table.operation)
}

/// Everything in which the table and the program, or the table and the tree, differ.
pub fn problems(root: &Path, program: &Program) -> Result<Vec<String>> {
    let operations = read(root)?;
    let mut problems = numbering(&operations);
    for operation in &operations {
        let mut told = match operation.state {
            State::NotYet => unbuilt(operation),
            State::Built | State::Partly => complete(operation),
        };
        told.extend(there(root, operation, program));
        problems.extend(told.iter().map(|what| format!("{FILE}: {}: {what}", operation.id)));
    }
    let owners = |what: &str, of: &dyn Fn(&Operation) -> bool, wanted: Wanted| {
        let owners: Vec<&str> =
            operations.iter().filter(|o| of(o)).map(|o| o.id.as_str()).collect();
        match (owners.as_slice(), wanted) {
            ([], _) => Some(format!("{FILE}: {what} belongs to no operation")),
            ([_, _, ..], Wanted::One) => {
                Some(format!("{FILE}: {what} belongs to {}; one should own it", owners.join(", ")))
            }
            ([_], _) | ([_, _, ..], Wanted::Some) => None,
        }
    };
    problems.extend(program.routes.iter().filter_map(|route| {
        owners(&format!("the route `{route}`"), &|o| o.routes.contains(route), Wanted::One)
    }));
    problems.extend(program.commands.keys().filter_map(|command| {
        let names = |o: &Operation| o.cli.iter().any(|text| words(text).0 == *command);
        owners(&format!("the command `atelier {command}`"), &names, Wanted::Some)
    }));
    problems.extend(program.job_kinds.iter().filter_map(|kind| {
        owners(&format!("the job kind `{kind}`"), &|o| o.job_kinds.contains(kind), Wanted::One)
    }));
    Ok(problems)
}

#[derive(Clone, Copy)]
enum Wanted {
    One,
    Some,
}

/// Ids count up within their domain, in the order of the domains.
fn numbering(operations: &[Operation]) -> Vec<String> {
    let mut expected = Vec::new();
    for (domain, letter, _) in Domain::ALL {
        let count = operations.iter().filter(|operation| operation.domain == domain).count();
        expected.extend((1..=count).map(|number| format!("{letter}{number}")));
    }
    let wrong = operations.iter().zip(&expected).find(|(operation, id)| operation.id != **id);
    wrong
        .map(|(operation, id)| format!("{FILE}: {} stands where {id} should", operation.id))
        .into_iter()
        .collect()
}

/// What does not exist has nothing to show.
fn unbuilt(operation: &Operation) -> Vec<String> {
    let Operation { built, missing, routes, within, cli, job_kinds, tests, document, .. } =
        operation;
    let lists = [routes, within, cli, job_kinds, tests];
    let something = lists.iter().any(|list| !list.is_empty());
    if something || built.is_some() || missing.is_some() || document.is_some() {
        return vec!["is not_yet, and says more than its title and latency".to_owned()];
    }
    Vec::new()
}

fn complete(operation: &Operation) -> Vec<String> {
    let Operation { built, missing, routes, within, cli, tests, document, .. } = operation;
    let mut problems = Vec::new();
    let mut check = |holds: bool, what: &str| {
        if !holds {
            problems.push(what.to_owned());
        }
    };
    let partly = operation.state == State::Partly;
    let reachable = !(routes.is_empty() && within.is_empty() && cli.is_empty());
    check(reachable, "names neither a route nor a command");
    check(!tests.is_empty(), "names no test");
    check(document.is_some(), "names no document");
    check(partly == built.is_some(), "`built` belongs to what is partly built, and only there");
    check(partly == missing.is_some(), "`missing` belongs to what is partly built, and only there");
    problems
}

/// Whatever is named must exist.
fn there(root: &Path, operation: &Operation, program: &Program) -> Vec<String> {
    let mut problems = Vec::new();
    for route in operation.routes.iter().chain(&operation.within) {
        if !program.routes.contains(route) {
            problems.push(format!("there is no route `{route}`"));
        }
    }
    for text in &operation.cli {
        let (command, flags) = words(text);
        match program.commands.get(&command) {
            None => problems.push(format!("there is no command `atelier {command}`")),
            Some(known) => problems.extend(
                flags
                    .iter()
                    .filter(|flag| !known.contains(**flag))
                    .map(|flag| format!("`atelier {command}` has no flag `{flag}`")),
            ),
        }
    }
    for kind in &operation.job_kinds {
        if !program.job_kinds.contains(kind) {
            problems.push(format!("there is no job kind `{kind}`"));
        }
    }
    problems.extend(operation.tests.iter().filter_map(|test| no_test(root, test)));
    if let Some(document) = &operation.document
        && !root.join(document).is_file()
    {
        problems.push(format!("there is no document `{document}`"));
    }
    if [&operation.title]
        .into_iter()
        .chain(&operation.built)
        .chain(&operation.missing)
        .any(|text| text.contains('|'))
    {
        problems.push("a `|` would break the table in README.md".to_owned());
    }
    problems
}

fn no_test(root: &Path, test: &str) -> Option<String> {
    let Some((file, function)) = test.rsplit_once("::") else {
        return Some(format!("`{test}` is no `file::function`"));
    };
    let Ok(text) = std::fs::read_to_string(root.join(file)) else {
        return Some(format!("there is no file `{file}`"));
    };
    let defined = [format!("fn {function}("), format!("def {function}(")];
    let found = defined.iter().any(|words| text.contains(words));
    (!found).then(|| format!("`{file}` has no test `{function}`"))
}

/// A command and its flags, apart.
fn words(text: &str) -> (String, Vec<&str>) {
    let (flags, command): (Vec<&str>, Vec<&str>) =
        text.split_whitespace().partition(|word| word.starts_with("--"));
    (command.join(" "), flags)
}

/// The table in README.md: a line a domain.
#[must_use]
pub fn readme_table(operations: &[Operation]) -> String {
    let count = |state| operations.iter().filter(|operation| operation.state == state).count();
    let mut text = format!(
        "Of {} planned operations {} are built, {} in part, and {} are absent from the program and its API \
         ([the whole list]({FILE})).\n\n| | works today | not yet |\n|---|---|---|\n",
        operations.len(),
        count(State::Built),
        count(State::Partly),
        count(State::NotYet)
    );
    for (domain, _, name) in Domain::ALL {
        let (mut works, mut not_yet) = (Vec::new(), Vec::new());
        for operation in operations.iter().filter(|operation| operation.domain == domain) {
            match operation.state {
                State::Built => works.push(operation.title.as_str()),
                State::NotYet => not_yet.push(operation.title.as_str()),
                State::Partly => {
                    works.extend(operation.built.as_deref());
                    not_yet.extend(operation.missing.as_deref());
                }
            }
        }
        let cell = |items: Vec<&str>| items.join("; ");
        writeln!(text, "| {name} | {} | {} |", cell(works), cell(not_yet))
            .expect("writing to a string");
    }
    text
}
