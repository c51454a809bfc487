//! Glob and grep over a disk.

use axum::http::StatusCode;

use crate::support::client::Client;
use crate::support::{TestConfig, run, run_with};

/// Returns the paths of the files that `glob` or `grep` finds.
async fn find_paths(client: &Client, disk: &str, operation: &str, query: &str) -> Vec<String> {
    let query: Vec<String> = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
    let query = query.concat();
    let response = client.get(&format!("/api/v1/disk/{disk}/artifact/{operation}?query={query}")).await;
    assert_eq!(response.status, StatusCode::OK, "{}", response.text());
    let data = response.data();
    let files = data.as_array().unwrap().iter();
    files.map(|file| format!("{}{}", file["path"].as_str().unwrap(), file["filename"].as_str().unwrap())).collect()
}

/// Creates a disk with sample files, and another disk with a file that no search may find.
async fn create_sample_disk(client: &Client) -> String {
    let (disk, other) = (client.new_disk().await, client.new_disk().await);
    client.upload(&disk, "/src/", "b.py", "def todo():\n    return 42\n").await;
    client.upload(&disk, "/", "a.txt", "First line\nTODO: call Ann\nlast line\n").await;
    client.upload(&disk, "/docs/", "c.md", "nothing to do\n").await;
    client.upload(&disk, "/", "d.json", "{\"todo\": 1}").await;
    client.upload(&disk, "/", "p.png", b"\x89PNG\r\n\x1a\n\0todo").await;
    client.upload(&disk, "/", "cafe.txt", b"todo \xe9").await;
    client.upload(&other, "/", "other.txt", "todo").await;
    disk
}

#[tokio::test]
async fn grep_finds_text_by_path_and_name_as_ripgrep_would() {
    run(async |app| {
        let client = app.project().await;
        let disk = create_sample_disk(&client).await;
        let grep = async |query: &str| find_paths(&client, &disk, "grep", query).await;
        assert_eq!(grep("todo").await, ["/a.txt", "/cafe.txt", "/d.json", "/src/b.py"]);
        assert_eq!(grep("^todo").await, ["/a.txt", "/cafe.txt"]);
        assert_eq!(grep("line$").await, ["/a.txt"]);
        assert_eq!(grep(r"\bcall\b").await, ["/a.txt"]);
        assert_eq!(grep("line.todo").await, [] as [&str; 0]);
        assert_eq!(grep(r"line\stodo").await, ["/a.txt"]);
        assert_eq!(grep("nothing|42").await, ["/docs/c.md", "/src/b.py"]);
        assert_eq!(grep("(?-i)TODO").await, ["/a.txt"]);
        assert_eq!(grep("png").await, [] as [&str; 0]);
        client.upload(&disk, "/", "a.txt", "done").await;
        assert_eq!(grep("call").await, [] as [&str; 0], "only the current content counts");
        let limited = client.get(&format!("/api/v1/disk/{disk}/artifact/grep?query=todo&limit=1")).await.data();
        assert_eq!(limited.as_array().unwrap().len(), 1);
        assert_eq!(limited[0]["filename"], "cafe.txt");
    })
    .await;
}

#[tokio::test]
async fn glob_finds_names_over_batches_and_stops_at_the_limit() {
    run(async |app| {
        let client = app.project().await;
        let disk = create_sample_disk(&client).await;
        let glob = async |query: &str| find_paths(&client, &disk, "glob", query).await;
        assert_eq!(glob("*").await, ["/a.txt", "/cafe.txt", "/d.json", "/p.png", "/docs/c.md", "/src/b.py"]);
        assert_eq!(glob("*.txt").await, ["/a.txt", "/cafe.txt"]);
        assert_eq!(glob("/*/[bc].*").await, ["/docs/c.md", "/src/b.py"]);
        assert_eq!(glob("a.txt").await, [] as [&str; 0]);
        assert_eq!(glob("/docs/c.md").await, ["/docs/c.md"]);
        assert_eq!(glob("/docs/*").await, ["/docs/c.md"]);
        assert_eq!(glob("/do*").await, ["/docs/c.md"]);
        assert_eq!(glob(r"/docs\/c.md").await, ["/docs/c.md"]);
        // More files than one batch of names holds.
        sqlx::query(
            "with b as (select id from blobs where state = 'live' limit 1),
                  n as (select '/many/' as path, 'f' || n || '.txt' as filename from generate_series(1, 12000) n),
                  a as (insert into artifacts (disk_id, path, filename) select $1, path, filename from n)
             insert into artifact_versions
                 (disk_id, path, filename, from_revision, blob_id, meta, mime, size, sha256)
             select $1, path, filename, 1, b.id, '{}', 'text/plain', 1, '' from n, b",
        )
        .bind(disk.parse::<uuid::Uuid>().unwrap())
        .execute(&*app.app.db)
        .await
        .unwrap();
        assert_eq!(glob("/many/f9999.txt").await, ["/many/f9999.txt"]);
        assert_eq!(glob("/s*").await, ["/src/b.py"], "a path after all of them");
        assert_eq!(glob("/many/*").await.len(), 100);
        let two = client.get(&format!("/api/v1/disk/{disk}/artifact/glob?query=/many/*&limit=2")).await.data();
        assert_eq!(two.as_array().unwrap().len(), 2);
    })
    .await;
}

#[tokio::test]
async fn invalid_patterns_and_limits_are_rejected_by_name() {
    run(async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        for operation in ["grep", "glob"] {
            let path = format!("/api/v1/disk/{disk}/artifact/{operation}");
            for (query, name) in [
                (String::new(), "query"),
                ("?query=".into(), "query"),
                (format!("?query={}", "a".repeat(1001)), "query"),
                ("?query=x&limit=201".into(), "limit"),
                ("?query=x&limit=-1".into(), "limit"),
                ("?query=x&limit=many".into(), "limit"),
            ] {
                client.get(&format!("{path}{query}")).await.assert_error(400, name);
            }
            assert_eq!(client.get(&format!("{path}?query={}&limit=0", "a".repeat(1000))).await.status, StatusCode::OK);
        }
        for pattern in ["(", "%5Ba-", "*x", "a(?=b)", "(a)%5C1", "a%7B1000%7D%7B1000%7D%7B1000%7D"] {
            client.get(&format!("/api/v1/disk/{disk}/artifact/grep?query={pattern}")).await.assert_error(400, "query");
        }
        client.get("/api/v1/disk/none/artifact/grep?query=x").await.assert_error(400, "disk_id");
    })
    .await;
}

#[tokio::test]
async fn a_grep_that_times_out_is_a_503_without_a_partial_result() {
    run_with(TestConfig::default().with("ACONTEXTD_GREP_TIMEOUT", "1ms"), async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        client.upload(&disk, "/", "a.txt", "x".repeat(4 << 20)).await;
        client.upload(&disk, "/", "b.txt", "y".repeat(4 << 20)).await;
        let response = client.get(&format!("/api/v1/disk/{disk}/artifact/grep?query=(x%2B)%2By$")).await;
        response.assert_error(503, "search timed out");
    })
    .await;
}

/// The limit of concurrent searches also covers the compilation of their patterns.
#[tokio::test]
async fn patterns_are_compiled_only_with_a_permit() {
    run_with(TestConfig::default().with("ACONTEXTD_GREP_TIMEOUT", "100ms"), async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        let limiters = [("grep", &app.app.disks.grep_limiter), ("glob", &app.app.disks.glob_limiter)];
        for (search, limiter) in limiters {
            let path = format!("/api/v1/disk/{disk}/artifact/{search}?query=%5Ba");
            let all = u32::try_from(limiter.available_permits()).unwrap();
            let permits = limiter.acquire_many(all).await.unwrap();
            client.get(&path).await.assert_error(503, "search timed out");
            drop(permits);
            let status = if search == "grep" { 400 } else { 200 };
            client.get(&path).await.assert_status(status);
            assert_eq!(limiter.available_permits(), all as usize, "{search}");
        }
    })
    .await;
}
