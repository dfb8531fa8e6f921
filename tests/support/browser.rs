//! A headless Chromium, controlled through the DevTools protocol: JSON messages, each
//! terminated by a zero byte, through two pipes.

use std::env;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::not_run;

/// The timeout of each operation; a machine that builds while testing is slow.
const PATIENCE: Duration = Duration::from_secs(60);

/// A browser with one page. Dropping it ends the browser.
pub(crate) struct Browser {
    child: Child,
    to_browser: ChildStdin,
    from_browser: Receiver<Value>,
    last_call: u64,
    session: Option<String>,
    complaints: Vec<String>,
    requests: Vec<String>,
    folder: TempDir,
}

impl Browser {
    /// Starts the browser. Without Chromium, returns `None` and prints a line.
    pub(crate) fn start() -> Option<Browser> {
        let Some(program) = chromium() else {
            not_run("browser", "there is no Chromium to show the pages");
            return None;
        };
        let folder = tempfile::tempdir().expect("there is a folder for temporary files");
        // The pipes of the protocol are file descriptors 3 and 4, which only a shell can
        // assign.
        let mut child = Command::new("sh")
            .args(["-c", "exec \"$0\" \"$@\" 3<&0 4>&1 </dev/null >/dev/null"])
            .arg(program)
            .args(["--headless=new", "--no-sandbox", "--remote-debugging-pipe"])
            .args(["--no-first-run", "--disable-gpu", "--hide-scrollbars"])
            .args(["--disable-background-networking", "--disable-dev-shm-usage"])
            .arg(format!("--user-data-dir={}", folder.path().display()))
            // Files that it leaves behind are removed with the folder.
            .env("TMPDIR", folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("there is a shell");
        let to_browser = child.stdin.take().expect("it is piped");
        let mut pipe = BufReader::new(child.stdout.take().expect("it is piped"));
        let (sender, from_browser) = mpsc::channel();
        thread::spawn(move || {
            let mut message = Vec::new();
            while pipe.read_until(0, &mut message).is_ok_and(|read| read > 0) {
                let json = message.strip_suffix(&[0]).unwrap_or(&message);
                let Ok(json) = serde_json::from_slice(json) else {
                    return;
                };
                if sender.send(json).is_err() {
                    return;
                }
                message.clear();
            }
        });
        let mut browser = Browser {
            child,
            to_browser,
            from_browser,
            last_call: 0,
            session: None,
            complaints: Vec::new(),
            requests: Vec::new(),
            folder,
        };
        browser.begin();
        Some(browser)
    }

    fn begin(&mut self) {
        let target = self.call("Target.createTarget", json!({"url": "about:blank"}));
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let session = self.call("Target.attachToTarget", attach);
        self.session = session["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log", "Network"] {
            self.call(&format!("{domain}.enable"), json!({}));
        }
        self.viewport(1440, 900);
    }

    /// Calls a method of the protocol and waits for its result.
    fn call(&mut self, method: &str, params: Value) -> Value {
        self.last_call += 1;
        let mut message = json!({"id": self.last_call, "method": method, "params": params});
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        let message = format!("{message}\0");
        self.to_browser
            .write_all(message.as_bytes())
            .expect("the browser lives");
        loop {
            let message = self.from_browser.recv_timeout(PATIENCE);
            let mut message = message.unwrap_or_else(|error| panic!("{method}: {error}"));
            if message["id"] == self.last_call {
                assert!(message["error"].is_null(), "{method}: {}", message["error"]);
                return message["result"].take();
            }
            self.note(&message);
        }
    }

    /// Records an event that a test may ask for.
    fn note(&mut self, event: &Value) {
        let params = &event["params"];
        match event["method"].as_str().unwrap_or_default() {
            "Network.requestWillBeSent" => {
                let url = params["request"]["url"].as_str().unwrap_or_default();
                self.requests.push(url.to_owned());
            }
            "Runtime.exceptionThrown" => {
                self.complaints.push(params["exceptionDetails"].to_string())
            }
            "Runtime.consoleAPICalled" => self.complaints.push(params["args"].to_string()),
            "Log.entryAdded" => self.complaints.push(params["entry"].to_string()),
            _ => {}
        }
    }

    /// Opens an address and waits until the page and its script have loaded.
    pub(crate) fn open(&mut self, url: &str) {
        self.eval("window.leaving = true");
        let opened = self.call("Page.navigate", json!({"url": url}));
        assert!(opened["errorText"].is_null(), "{url}: {opened}");
        self.wait_for("!window.leaving && document.readyState === 'complete'");
    }

    pub(crate) fn open_file(&mut self, path: &Path) {
        self.open(&format!("file://{}", path.display()));
    }

    /// Evaluates an expression on the page; a promise is awaited.
    pub(crate) fn eval(&mut self, expression: &str) -> Value {
        let params = json!({"expression": expression, "awaitPromise": true, "returnByValue": true});
        let mut result = self.call("Runtime.evaluate", params);
        let failure = &result["exceptionDetails"];
        assert!(failure.is_null(), "{expression}: {failure}");
        result["result"]["value"].take()
    }

    /// Evaluates an expression on the page as a text.
    pub(crate) fn text(&mut self, expression: &str) -> String {
        let value = self.eval(expression);
        let text = value.as_str();
        text.unwrap_or_else(|| panic!("{expression}: {value}"))
            .to_owned()
    }

    /// Waits until an expression is true on the page.
    pub(crate) fn wait_for(&mut self, condition: &str) {
        let until = Instant::now() + PATIENCE;
        while self.eval(&format!("Boolean({condition})")) != json!(true) {
            assert!(Instant::now() < until, "not within a minute: {condition}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Presses a key, given by the name that the page sees, optionally after `Control+`.
    pub(crate) fn press(&mut self, key: &str) {
        let (modifiers, key) = match key.strip_prefix("Control+") {
            Some(key) => (2, key),
            None => (0, key),
        };
        // Only keys with a text press buttons and write into fields.
        let text = match key {
            "Enter" => "\r",
            key if key.chars().count() == 1 && modifiers == 0 => key,
            _ => "",
        };
        for kind in ["keyDown", "keyUp"] {
            let mut params = json!({"type": kind, "key": key, "modifiers": modifiers});
            if kind == "keyDown" && !text.is_empty() {
                params["text"] = json!(text);
            }
            self.call("Input.dispatchKeyEvent", params);
        }
    }

    /// Types a text into the focused element.
    pub(crate) fn type_text(&mut self, text: &str) {
        self.call("Input.insertText", json!({"text": text}));
    }

    /// Moves the pointer to the middle of an element.
    pub(crate) fn point_at(&mut self, selector: &str) {
        let middle = self.eval(&format!(
            "(() => {{
                const element = document.querySelector({selector:?});
                element.scrollIntoView({{ block: 'center' }});
                const box = element.getClientRects()[0];
                return {{ x: box.x + box.width / 2, y: box.y + box.height / 2 }};
            }})()"
        ));
        let params = json!({"type": "mouseMoved", "x": middle["x"], "y": middle["y"]});
        self.call("Input.dispatchMouseEvent", params);
    }

    /// Sets the size of the window.
    pub(crate) fn viewport(&mut self, width: u32, height: u32) {
        let size =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.call("Emulation.setDeviceMetricsOverride", size);
    }

    /// Sets the preferred colour scheme, `light` or `dark`.
    pub(crate) fn colour_scheme(&mut self, scheme: &str) {
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.call("Emulation.setEmulatedMedia", json!({"features": features}));
    }

    /// Sets the platform that pages opened from now on see, such as `MacIntel`.
    pub(crate) fn platform(&mut self, platform: &str) {
        let agent = self.text("navigator.userAgent");
        let params = json!({"userAgent": agent, "platform": platform});
        self.call("Emulation.setUserAgentOverride", params);
    }

    /// Saves a picture of the window, or of the whole page, as a PNG file.
    pub(crate) fn screenshot(&mut self, path: &Path, whole_page: bool) {
        let params = json!({"captureBeyondViewport": whole_page});
        let picture = match whole_page {
            false => self.call("Page.captureScreenshot", params),
            true => {
                let metrics = self.call("Page.getLayoutMetrics", json!({}));
                let mut clip = metrics["cssContentSize"].clone();
                clip["scale"] = json!(1);
                let params = json!({"captureBeyondViewport": true, "clip": clip});
                self.call("Page.captureScreenshot", params)
            }
        };
        let picture = picture["data"].as_str().expect("it is base64");
        let picture = BASE64_STANDARD.decode(picture).expect("it is base64");
        fs::write(path, picture).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    /// Performs an action that saves a file of this name, and waits for the file.
    pub(crate) fn download(&mut self, name: &str, action: impl FnOnce(&mut Browser)) -> PathBuf {
        let folder = self.folder.path().join("downloads");
        let params = json!({"behavior": "allow", "downloadPath": folder});
        self.call("Browser.setDownloadBehavior", params);
        action(self);
        let path = folder.join(name);
        // A file gets its name when it is complete.
        super::wait_until(name, || path.exists());
        path
    }

    /// Returns the console messages of the page, and its errors.
    pub(crate) fn complaints(&mut self) -> Vec<String> {
        // All events before the response to this call have been recorded.
        self.eval("0");
        self.complaints.clone()
    }

    /// Returns the addresses of all requests.
    pub(crate) fn requests(&mut self) -> Vec<String> {
        self.eval("0");
        self.requests.clone()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // On this request Chromium ends all its processes, so that nothing writes into its
        // folder any more. It may have exited by itself.
        _ = self
            .to_browser
            .write_all(b"{\"id\":0,\"method\":\"Browser.close\"}\0");
        let until = Instant::now() + Duration::from_secs(10);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < until {
            thread::sleep(Duration::from_millis(10));
        }
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// The program, if there is one: `INCANT_CHROMIUM`, or one of the usual names.
fn chromium() -> Option<PathBuf> {
    if let Some(program) = env::var_os("INCANT_CHROMIUM").filter(|path| !path.is_empty()) {
        return Some(program.into());
    }
    let folders: Vec<PathBuf> = env::split_paths(&env::var_os("PATH")?).collect();
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let mut places = names
        .iter()
        .flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
    places.find(|place| place.is_file())
}
