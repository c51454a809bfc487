//! Checks histories for the Python tests. Each line of the standard input is a JSON object with `format` and `messages`; the answer
//! is a line with `{"ok": true}`, or with `{"ok": false, "error": ...}` that names the violated rule.

#![expect(unreachable_pub, reason = "the module is shared with the integration tests")]

use std::io::{self, BufRead, Write};

use serde_json::{Value, json};

#[path = "../tests/acceptors/mod.rs"]
mod acceptors;

fn main() -> io::Result<()> {
    let mut output = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let answer = match answer(&line?) {
            Ok(()) => json!({"ok": true}),
            Err(error) => json!({"ok": false, "error": error}),
        };
        writeln!(output, "{answer}")?;
        output.flush()?;
    }
    Ok(())
}

fn answer(line: &str) -> Result<(), String> {
    let request: Value = serde_json::from_str(line).map_err(|err| format!("request is not JSON: {err}"))?;
    let format = request["format"].as_str().ok_or("format must be a string")?;
    let messages = request["messages"].as_array().ok_or("messages must be a list")?;
    acceptors::check(format, messages)
}
