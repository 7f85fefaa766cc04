//! A headless Chromium, spoken to over a pipe (`--remote-debugging-pipe`, the DevTools protocol): no library and no port.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::{Value, json};

/// Where it may be found; the variable names another one.
const NAMES: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
const VARIABLE: &str = "ATTNBENCH_CHROMIUM";
/// Set where a browser must be there, as in CI.
const REQUIRED: &str = "ATTNBENCH_REQUIRE_CHROMIUM";

/// Only a browser that hangs takes as long.
const PATIENCE: Duration = Duration::from_secs(300);

/// A browser with one page.
pub(crate) struct Browser {
    child: Child,
    to: ChildStdin,
    from: Receiver<Value>,
    session: String,
    last_id: u64,
    events: VecDeque<Value>,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// Starts one, or says loudly that there is none.
    pub(crate) fn start() -> Option<Browser> {
        let found = std::env::var(VARIABLE).ok().or_else(|| {
            let is_there =
                |name: &&&str| Command::new(name).arg("--version").output().is_ok_and(|done| done.status.success());
            NAMES.iter().find(is_there).map(|name| (*name).to_owned())
        });
        let Some(program) = found else {
            assert!(std::env::var_os(REQUIRED).is_none(), "{REQUIRED} is set, and there is no Chromium");
            eprintln!("\nSKIPPED: there is no Chromium. `apt-get install chromium`, or {VARIABLE}=PATH\n");
            return None;
        };
        let profile = tempfile::tempdir().expect("a temporary folder");
        // The pipe is file 3 of the browser for what it is told, and 4 for what it says.
        let script = "exec \"$0\" --headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run \
                      --disable-background-networking --remote-debugging-pipe --user-data-dir=\"$1\" about:blank 3<&0 4>&1 \
                      </dev/null >/dev/null";
        let mut child = Command::new("sh")
            .args(["-c", script, &program])
            .arg(profile.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("sh starts");
        let (to, out) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        let (sender, from) = channel();
        std::thread::spawn(move || {
            for message in BufReader::new(out).split(0).map_while(Result::ok) {
                let message = serde_json::from_slice(&message).expect("the browser speaks JSON");
                if sender.send(message).is_err() {
                    break;
                }
            }
        });
        let session = String::new();
        let mut browser = Browser { child, to, from, session, last_id: 0, events: VecDeque::new(), _profile: profile };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }))["targetId"].clone();
        let attached = browser.call("Target.attachToTarget", json!({ "targetId": target, "flatten": true }));
        browser.session = attached["sessionId"].as_str().expect("a session").to_owned();
        for domain in ["Page", "Runtime", "Network", "Log"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        Some(browser)
    }

    /// One request and its answer; what else the browser says meanwhile is kept.
    pub(crate) fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.last_id += 1;
        let mut request = json!({ "id": self.last_id, "method": method, "params": parameters });
        if !self.session.is_empty() {
            request["sessionId"] = json!(self.session);
        }
        self.to.write_all(format!("{request}\0").as_bytes()).expect("the browser listens");
        loop {
            let message = self.from.recv_timeout(PATIENCE).unwrap_or_else(|error| panic!("{method}: {error}"));
            if message["id"] == self.last_id {
                assert!(message.get("error").is_none(), "{method}: {message}");
                return message["result"].clone();
            }
            self.events.push_back(message);
        }
    }

    /// Opens a file of a report, with what follows its name in the address, and waits until the page has drawn itself.
    pub(crate) fn open(&mut self, report: &Path, page: &str) {
        // The same address but for its hash would be no new page.
        self.call("Page.navigate", json!({ "url": "about:blank" }));
        let url = format!("file://{}/{page}", report.display());
        let answer = self.call("Page.navigate", json!({ "url": url }));
        assert!(answer.get("errorText").is_none(), "{url}: {answer}");
        self.wait("document.body?.dataset.ready === 'yes'");
    }

    /// The value of an expression in the page.
    pub(crate) fn value(&mut self, expression: &str) -> Value {
        let parameters = json!({ "expression": expression, "awaitPromise": true, "returnByValue": true });
        let answer = self.call("Runtime.evaluate", parameters);
        assert!(answer.get("exceptionDetails").is_none(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// Waits until an expression is true in the page.
    pub(crate) fn wait(&mut self, expression: &str) {
        let promise = format!(
            "new Promise((resolve) => {{ const look = () => ({expression}) ? resolve(true) : setTimeout(look, 15); look(); }})"
        );
        self.value(&promise);
    }

    /// Draws every plot, as somebody who scrolls past all of them does, and waits until they are there.
    pub(crate) fn draw_plots(&mut self) {
        self.value("document.querySelectorAll('.plot').forEach((plot) => plot.drawFirst?.())");
        self.wait("[...document.querySelectorAll('.plot')].every((plot) => plot.dataset.drawn || plot.hidden)");
    }

    /// Seconds that the page's thread has worked, after `Performance.enable`.
    pub(crate) fn thread_s(&mut self) -> f64 {
        let answer = self.call("Performance.getMetrics", json!({}));
        let metrics = answer["metrics"].as_array().expect("a list");
        let task = metrics.iter().find(|metric| metric["name"] == "TaskDuration").expect("Chromium has it");
        task["value"].as_f64().expect("a number")
    }

    /// What went wrong since the last call: errors, warnings and exceptions of pages, and requests to anywhere but the disk.
    pub(crate) fn complaints(&mut self) -> Vec<String> {
        self.events
            .drain(..)
            .filter_map(|event| {
                let what = &event["params"];
                let text = match event["method"].as_str()? {
                    "Runtime.exceptionThrown" => what["exceptionDetails"].to_string(),
                    "Runtime.consoleAPICalled" if what["type"] != "log" => what["args"].to_string(),
                    "Log.entryAdded" if what["entry"]["level"] != "verbose" => what["entry"].to_string(),
                    "Network.requestWillBeSent" => {
                        let url = what["request"]["url"].as_str()?;
                        let is_local = ["file:", "data:", "blob:", "about:"].iter().any(|start| url.starts_with(start));
                        (!is_local).then(|| format!("a request to {url}"))?
                    }
                    _ => return None,
                };
                Some(text)
            })
            .collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It may have gone by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
