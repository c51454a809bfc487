//! Moto, an S3 server that is independent of the one in [`super::s3`].

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use super::s3::BUCKET;

pub struct Moto {
    child: Child,
    /// The URL of the endpoint.
    pub url: String,
}

impl Moto {
    /// Starts Moto with an empty bucket. It accepts every key.
    pub async fn start() -> Self {
        let program = concat!(env!("CARGO_MANIFEST_DIR"), "/.venv/bin/moto_server");
        let mut command = Command::new(program);
        let spawned = command.args(["-p", "0"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let mut child = spawned.unwrap_or_else(|err| panic!("{program}: {err}; run `make test`, which installs it"));
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let url = lines.find_map(|line| Some(line.trim().strip_prefix("* Running on ")?.to_owned())).unwrap();
        // Moto blocks if nothing reads its log.
        std::thread::spawn(move || lines.for_each(drop));
        let moto = Self { child, url };
        let created = reqwest::Client::new().put(format!("{}/{BUCKET}", moto.url)).send().await.unwrap();
        assert!(created.status().is_success(), "{created:?}");
        moto
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
