//! What is said twice cannot drift apart unnoticed: every kind of drift, made on purpose, and what the check says to it.

use atelier_engine::worker::SupervisorConfig;
use atelier_protocol::ErrorCode;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use xtask::operations::{self, Program};
use xtask::{codegen, error_codes, protocol_page, root, tidy};

/// This tree in a temporary folder: what the tests change is copied, the rest is linked.
struct Tree(tempfile::TempDir);

impl Tree {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(root()).unwrap() {
            let from = entry.unwrap().path();
            let name = from.file_name().unwrap().to_str().unwrap().to_owned();
            let to = folder.path().join(&name);
            match name.as_str() {
                "target" | ".git" => {}
                "contract" | "docs" => copy(&from, &to),
                _ if from.is_file() => std::fs::write(&to, std::fs::read(&from).unwrap()).unwrap(),
                _ => symlink(&from, &to).unwrap(),
            }
        }
        Self(folder)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Replaces the first occurrence of a text, which must be there.
    fn edit(&self, file: &str, from: &str, to: &str) {
        let path = self.path().join(file);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{file} has no `{from}`");
        std::fs::write(path, text.replacen(from, to, 1)).unwrap();
    }

    fn append(&self, file: &str, more: &str) {
        let path = self.path().join(file);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(path, text + more).unwrap();
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let from: PathBuf = entry.unwrap().path();
        let to = to.join(from.file_name().unwrap());
        if from.is_dir() {
            copy(&from, &to);
        } else {
            std::fs::write(to, std::fs::read(&from).unwrap()).unwrap();
        }
    }
}

/// Exactly one complaint, with all of these words.
fn one(problems: &[String], words: &[&str]) {
    let [only] = problems else { panic!("not one complaint about {words:?}: {problems:#?}") };
    for word in words {
        assert!(only.contains(word), "no `{word}` in: {only}");
    }
}

#[test]
fn this_tree_passes_every_check() {
    let none = Vec::<String>::new();
    assert_eq!(codegen::stale(&root()).unwrap(), none);
    assert_eq!(tidy::paths_in_documents(&root()).unwrap(), none);
    assert_eq!(tidy::modules_without_a_word(&root()).unwrap(), none);
    assert_eq!(tidy::messages_without_a_word(&root()).unwrap(), none);
    assert_eq!(operations::problems(&root(), &Program::built()).unwrap(), none);
    assert_eq!(error_codes::unproduced(&root()).unwrap(), none);
}

#[test]
fn a_field_added_to_the_rust_half_only_makes_the_schema_stale() {
    // The schema without the field is what the tree holds in the moment after the Rust type got it.
    let tree = Tree::new();
    tree.edit("contract/worker.schema.json", "\"load_ms\"", "\"loading_ms\"");
    one(
        &codegen::stale(tree.path()).unwrap(),
        &["contract/worker.schema.json: line ", "`\"load_ms\""],
    );
    // The other half is compared with the schema by worker/tests/test_messages_shape.py.
}

#[test]
fn an_error_code_whose_text_changed_in_one_place_only_is_stale() {
    let tree = Tree::new();
    let hint = ErrorCode::StoreFull.hint();
    tree.edit("contract/error-codes.json", &hint, "");
    one(&codegen::stale(tree.path()).unwrap(), &["contract/error-codes.json: line ", &hint]);
    // A row without its "Try:" is refused by the table's own test, in crates/protocol/src/error_code.rs.
}

#[test]
fn a_code_that_no_test_produces_is_named() {
    let tree = Tree::new();
    std::fs::remove_file(tree.path().join("crates")).unwrap();
    std::fs::remove_file(tree.path().join("worker")).unwrap();
    let tests = tree.path().join("crates/engine/tests/it");
    std::fs::create_dir_all(&tests).unwrap();
    let all_but_one: Vec<_> = ErrorCode::ALL
        .iter()
        .filter(|row| row.code != ErrorCode::StoreFull)
        .map(|row| format!("ErrorCode::{:?}\n", row.code))
        .collect();
    std::fs::write(tests.join("a.rs"), all_but_one.concat()).unwrap();
    // Code that is no test does not count, nor does another crate's own use of the word.
    let src = tree.path().join("crates/engine/src");
    std::fs::create_dir_all(&src).unwrap();
    std::fs::write(src.join("lib.rs"), "ErrorCode::StoreFull\n#[cfg(test)]\nmod tests {}\n")
        .unwrap();
    one(&error_codes::unproduced(tree.path()).unwrap(), &["`store.full`", "no test produces it"]);
}

#[test]
fn a_route_a_command_and_a_kind_of_job_without_a_row_are_named() {
    let mut program = Program::built();
    program.routes.insert("POST /v1/surprises".to_owned());
    let problems = operations::problems(&root(), &program).unwrap();
    one(&problems, &["the route `POST /v1/surprises` belongs to no operation"]);

    let mut program = Program::built();
    program.commands.insert("surprise me".to_owned(), Default::default());
    let problems = operations::problems(&root(), &program).unwrap();
    one(&problems, &["the command `atelier surprise me` belongs to no operation"]);

    let mut program = Program::built();
    program.job_kinds.insert("upscale".to_owned());
    let problems = operations::problems(&root(), &program).unwrap();
    one(&problems, &["the job kind `upscale` belongs to no operation"]);
}

#[test]
fn a_row_that_promises_what_is_not_there_is_named() {
    let file = operations::FILE;
    let cases: [(&str, &str, &[&str]); 14] = [
        ("\"GET /v1/memory\", ", "", &["the route `GET /v1/memory` belongs to no operation"]),
        (
            "routes = [\"GET /v1/capabilities\"]",
            "routes = [\"GET /v1/capabilities\", \"GET /v1/devices\"]",
            &["`GET /v1/devices` belongs to D1, I1"],
        ),
        (
            "within = [\"GET /v1/jobs/{id}\"]",
            "within = [\"GET /v1/work/{id}\"]",
            &["I5", "no route `GET /v1/work/{id}`"],
        ),
        ("cli = [\"jobs watch\"]", "cli = []", &["`atelier jobs watch` belongs to no operation"]),
        ("\"generate --dry-run\"", "\"generate --dry\"", &["I3", "has no flag `--dry`"]),
        ("job_kinds = [\"text_to_image\"]", "", &["`text_to_image` belongs to no operation"]),
        ("::every_stage_of_a_finished_job_is_timed", "::gone", &["I5", "has no test `gone`"]),
        (
            "tests = [\"crates/engine/tests/it/node.rs::every_stage_of_a_finished_job_is_timed\"]",
            "tests = []",
            &["I5", "names no test"],
        ),
        ("document = \"docs/reference/cli.md\"\n", "", &["N1", "names no document"]),
        (
            "document = \"docs/reference/cli.md\"",
            "document = \"docs/gone.md\"",
            &["N1", "docs/gone.md"],
        ),
        ("missing = \"previews\"\n", "", &["P5", "`missing` belongs to what is partly built"]),
        ("missing = \"traces\"", "missing = \"traces | more\"", &["N1", "break the table"]),
        (
            "title = \"health checks\"\nstate = \"not_yet\"",
            "title = \"health checks\"\nstate = \"not_yet\"\nwithin = [\"GET /v1/devices\"]",
            &["D4", "is not_yet, and says more"],
        ),
        ("id = \"D3\"", "id = \"D33\"", &["D33 stands where D3 should"]),
    ];
    for (from, to, words) in cases {
        let tree = Tree::new();
        tree.edit(file, from, to);
        one(&operations::problems(tree.path(), &Program::built()).unwrap(), words);
    }
}

#[test]
fn an_operation_that_changed_makes_the_readme_stale() {
    let tree = Tree::new();
    tree.edit(
        operations::FILE,
        "title = \"health checks\"",
        "title = \"health checks of a device\"",
    );
    one(&codegen::stale(tree.path()).unwrap(), &["README.md: line ", "health checks of a device"]);
}

#[test]
fn a_page_without_its_marks_is_an_error_and_not_an_empty_page() {
    let tree = Tree::new();
    tree.edit("README.md", "<!-- operations:end -->", "");
    let error = codegen::stale(tree.path()).unwrap_err().to_string();
    assert!(error.contains("README.md lacks"), "{error}");
}

#[test]
fn a_document_that_names_a_path_that_is_gone_is_named_with_its_line() {
    let tree = Tree::new();
    let lines = std::fs::read_to_string(tree.path().join("docs/reference/protocol.md")).unwrap();
    let line = format!("docs/reference/protocol.md:{}: ", lines.lines().count() + 1);
    tree.append("docs/reference/protocol.md", "See `crates/gone/src/lib.rs`.\n");
    let problems = tidy::paths_in_documents(tree.path()).unwrap();
    one(&problems, &[&line, "`crates/gone/src/lib.rs` does not exist"]);

    let tree = Tree::new();
    tree.append("CONTRIBUTING.md", "See [the page](docs/gone.md#there).\n");
    one(&tidy::paths_in_documents(tree.path()).unwrap(), &["`docs/gone.md` does not exist"]);
}

#[test]
fn a_message_that_nobody_explains_is_named() {
    let schema = std::fs::read(root().join("contract/worker.schema.json")).unwrap();
    let schema: serde_json::Value = serde_json::from_slice(&schema).unwrap();
    let page = std::fs::read_to_string(root().join(protocol_page::FILE)).unwrap();
    let silent = page.replace("`measure`", "measuring");
    one(&protocol_page::unexplained(&silent, &schema), &["the message `measure`"]);
    let mut grown = schema;
    let variants = grown["from_worker"]["oneOf"].as_array_mut().unwrap();
    variants.push(serde_json::json!({"properties": {"type": {"const": "news"}}}));
    one(&protocol_page::unexplained(&page, &grown), &["the message `news`"]);
}

#[test]
fn the_waits_in_the_protocols_page_are_those_of_the_supervisor() {
    let page = std::fs::read_to_string(root().join(protocol_page::FILE)).unwrap();
    let config = SupervisorConfig::default();
    let phases = config.phases;
    assert_eq!(phases.encode, phases.decode);
    let limits = format!("| {} (`limits.line_bytes`) |", "1,048,576");
    assert_eq!(atelier_protocol::worker::MAX_LINE_BYTES, 1_048_576);
    for row in [
        format!("| start → `hello` | {} s |", config.hello_limit.as_secs()),
        format!("| `welcome` → `ready` | {} s |", config.import_limit.as_secs()),
        format!("| silence of a run while it encodes or decodes | {} s |", phases.encode.as_secs()),
        format!(
            "| {} s; once steps are learned, the longer of {} s and {} × a step |",
            phases.unlearned_step.as_secs(),
            phases.least_step.as_secs(),
            phases.step_factor
        ),
        format!("| … while it compiles | {} s |", phases.compile.as_secs()),
        format!("| starts in a row that fail | {}, ", config.start_attempts),
        format!("gets SIGTERM {0} s later, SIGKILL {0} s after that", config.stop_grace.as_secs()),
        format!("| {} (`limits.bad_lines`) |", atelier_protocol::worker::MAX_BAD_LINES),
        format!("| {} | the welcome had", atelier_protocol::worker::EXIT_VERSION_MISMATCH),
        format!("| {} | too many bad lines", atelier_protocol::worker::EXIT_BAD_LINES),
        limits,
    ] {
        assert!(page.contains(&row), "the page lacks `{row}`");
    }
}

#[test]
fn a_module_that_does_not_say_what_it_owns_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let src = folder.path().join("crates/engine/src");
    std::fs::create_dir_all(&src).unwrap();
    std::fs::write(src.join("good.rs"), "//! Owns nothing.\n").unwrap();
    std::fs::write(src.join("bad.rs"), "use std::fs;\n").unwrap();
    let problems = tidy::modules_without_a_word(folder.path()).unwrap();
    one(&problems, &["crates/engine/src/bad.rs", "what the module owns"]);
}
