//! A node in a folder of its own, as a process, and the calls that tests make.

use atelier_testkit::{ScriptedWorker, models, repository};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// A data folder and the settings of the processes that use it.
pub(crate) struct House {
    pub(crate) data: tempfile::TempDir,
    worker: Option<Vec<String>>,
}

/// A serving process; ends with the value.
pub(crate) struct Node {
    pub(crate) process: Child,
    pub(crate) address: String,
}

impl House {
    /// With a worker that follows a script.
    pub(crate) fn scripted(worker: &ScriptedWorker) -> Self {
        Self { data: tempfile::tempdir().unwrap(), worker: Some(worker.command()) }
    }

    /// With the real worker, in the environment that all tests share (installed at the first need).
    pub(crate) fn real() -> Self {
        Self { data: tempfile::tempdir().unwrap(), worker: None }
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_atelier"));
        command
            .args(args)
            .env("ATELIER_DATA", self.data.path())
            .env("ATELIER_PICTURES", self.data.path().join("pictures"))
            .env("ATELIER_MODELS", models());
        if std::env::var_os("ATELIER_ENVS").is_none() {
            command.env("ATELIER_ENVS", repository().join("target/envs"));
        }
        if let Some(worker) = &self.worker {
            command.env("ATELIER_WORKER_COMMAND", json!(worker).to_string());
        }
        command
    }

    /// Runs a command to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command(args).stdin(Stdio::null()).output().unwrap()
    }

    /// Runs a command whose data folder lies on a disk without a free page: a small one in a mount namespace, which goes
    /// with its process. `None` where nobody lets us mount.
    pub(crate) fn run_on_a_full_disk(&self, args: &[&str]) -> Option<Output> {
        const FULL: &str = "mount -t tmpfs -o size=256k,mode=700 none \"$ATELIER_DATA\" || exit 99; \
                            cat /dev/zero > \"$ATELIER_DATA/ballast\" 2>/dev/null; \
                            exec \"$0\" \"$@\"";
        let disk = self.data.path().join("disk");
        std::fs::create_dir_all(&disk).unwrap();
        let inside = |namespace: &[&str]| {
            let mut command = Command::new("unshare");
            let atelier = env!("CARGO_BIN_EXE_atelier");
            command.args(namespace).args(["sh", "-c", FULL, atelier]).args(args);
            for (name, value) in self.command(&[]).get_envs() {
                command.env(name, value.unwrap_or_default());
            }
            let output = command.env("ATELIER_DATA", &disk).stdin(Stdio::null()).output().ok()?;
            // 1 is unshare's own word for no.
            Some(output).filter(|output| !matches!(output.status.code(), Some(1 | 99)))
        };
        inside(&["-m"]).or_else(|| inside(&["-r", "-m"]))
    }

    pub(crate) fn serve(&self) -> Node {
        self.serve_with(&[])
    }

    pub(crate) fn serve_with(&self, more: &[&str]) -> Node {
        let log = std::fs::File::create(self.data.path().join("serve.log")).unwrap();
        let mut process = self
            .command(&["serve", "--listen", "127.0.0.1:0", "--json"])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let told: Value = serde_json::from_str(&line).unwrap_or_else(|_| {
            panic!("no address but `{line}`; {}", self.log());
        });
        let address = told["address"].as_str().unwrap().to_owned();
        Node { process, address }
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.data.path().join("serve.log")).unwrap_or_default()
    }
}

/// An answer as it came.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) bytes: Vec<u8>,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_else(|_| {
            panic!("{} is no JSON", String::from_utf8_lossy(&self.bytes));
        })
    }
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
    /// The code of an error answer, whose shape is checked.
    pub(crate) fn code(&self) -> String {
        let error = &self.json()["error"];
        for field in ["code", "message", "hint", "retry", "request_id"] {
            assert!(error[field].is_string(), "{field} is missing in {error}");
        }
        error["code"].as_str().unwrap().to_owned()
    }
}

impl Node {
    /// One request, written by hand so that a test can send what no client would.
    pub(crate) fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Answer {
        use std::io::Write;
        let mut stream = std::net::TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let mut head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            head.push_str(&format!("Host: {}\r\n", self.address));
        }
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
        stream.write_all(head.as_bytes()).unwrap();
        let _ = stream.write_all(body); // a body that is too large is refused before its end
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes); // as above
        parse(&bytes)
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.request("GET", path, &[], b"")
    }

    pub(crate) fn post(&self, path: &str, body: &Value, headers: &[(&str, &str)]) -> Answer {
        let mut all = vec![("Content-Type", "application/json")];
        all.extend_from_slice(headers);
        self.request("POST", path, &all, body.to_string().as_bytes())
    }

    /// Submits and returns the job as accepted.
    pub(crate) fn submit(&self, body: &Value) -> Value {
        let answer = self.post("/v1/jobs", body, &[]);
        assert_eq!(answer.status, 202, "{}", String::from_utf8_lossy(&answer.bytes));
        answer.json()
    }

    pub(crate) fn job(&self, job: &Value) -> Value {
        self.get(&format!("/v1/jobs/{}", job["id"].as_str().unwrap())).json()
    }

    /// The job once this holds of it.
    pub(crate) fn job_when(&self, job: &Value, holds: impl Fn(&Value) -> bool) -> Value {
        until("the job gets there", || Some(self.job(job)).filter(&holds))
    }

    pub(crate) fn ended(&self, job: &Value) -> Value {
        self.job_when(job, |job| {
            ["succeeded", "failed", "cancelled"].contains(&job["state"].as_str().unwrap())
        })
    }

    pub(crate) fn worker_pid(&self) -> i32 {
        until("a worker is there", || {
            let devices = self.get("/v1/devices").json();
            let pid = devices["data"][0]["worker"]["pid"].as_i64()?;
            i32::try_from(pid).ok()
        })
    }

    pub(crate) fn signal(&self, name: &str) {
        signal(i32::try_from(self.process.id()).unwrap(), name);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.process.kill(); // it may have ended
        let _ = self.process.wait(); // as above
    }
}

pub(crate) fn signal(pid: i32, name: &str) {
    let status = Command::new("kill").args([format!("-{name}"), pid.to_string()]).status();
    assert!(status.unwrap().success(), "no process {pid}");
}

pub(crate) fn is_alive(pid: i32) -> bool {
    // A process that was killed and not yet waited for by its new parent is as good as gone.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

/// Looks until there is something to see; the pause is only to leave the processor to those who are watched.
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LIMIT * 5;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn parse(bytes: &[u8]) -> Answer {
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").expect("an HTTP answer");
    let head = std::str::from_utf8(&bytes[..end]).unwrap();
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
        .collect();
    let mut body = bytes[end + 4..].to_vec();
    if headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked") {
        body = unchunk(&body);
    }
    Answer { status, headers, bytes: body }
}

fn unchunk(mut bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some(end) = bytes.windows(2).position(|w| w == b"\r\n") {
        let size = std::str::from_utf8(&bytes[..end]).unwrap();
        let size = usize::from_str_radix(size.trim(), 16).unwrap();
        if size == 0 {
            break;
        }
        out.extend_from_slice(&bytes[end + 2..end + 2 + size]);
        bytes = &bytes[end + 4 + size..];
    }
    out
}

/// A decoded PNG: width, height, RGB.
pub(crate) fn pixels(path: &Path) -> (u32, u32, Vec<u8>) {
    let decoder = png::Decoder::new(BufReader::new(std::fs::File::open(path).unwrap()));
    let mut reader = decoder.read_info().unwrap();
    let mut buffer = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut buffer).unwrap();
    assert_eq!(info.color_type, png::ColorType::Rgb);
    buffer.truncate(info.buffer_size());
    (info.width, info.height, buffer)
}

/// Texts in a PNG by keyword.
pub(crate) fn texts(path: &Path) -> Vec<(String, String)> {
    let decoder = png::Decoder::new(BufReader::new(std::fs::File::open(path).unwrap()));
    let mut reader = decoder.read_info().unwrap();
    let mut buffer = vec![0; reader.output_buffer_size().unwrap()];
    reader.next_frame(&mut buffer).unwrap();
    reader.finish().unwrap();
    let info = reader.info();
    let latin = info.uncompressed_latin1_text.iter().map(|t| (t.keyword.clone(), t.text.clone()));
    let utf8 = info.utf8_text.iter().map(|t| (t.keyword.clone(), t.get_text().unwrap()));
    latin.chain(utf8).collect()
}

pub(crate) fn stdout_paths(output: &Output) -> Vec<PathBuf> {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().map(PathBuf::from).collect()
}
