//! No project reaches anything of another one, by whatever operation: the API's description says which there are.

use acontextd::features::ACCESS_RULES;
use axum::http::StatusCode;

use crate::support::client::{Answer, Client};
use crate::support::samples::{Sample, operations, sample};
use crate::support::{Setup, TestApp, run_with};

/// Deletes of what is not there are fine, here too; they change nothing.
const FINE: [&str; 2] =
    ["DELETE /api/v1/user/{identifier}", "DELETE /api/v1/learning_spaces/{space_id}/skills/{skill_id}"];

/// The ends of operations whose answers name nothing.
const SAYS_NO_IDS: [&str; 3] = ["/ping", "/configs", "/encryption"];

/// The operations that want a project's key.
fn of_projects() -> impl Iterator<Item = String> {
    operations().into_iter().filter(|operation| {
        let (_, path) = operation.split_once(' ').unwrap();
        !path.starts_with("/admin/") && !path.starts_with("/metrics") && !ACCESS_RULES.public.contains(&path)
    })
}

/// Runs a check of each operation with the jobs at work.
async fn for_each_operation(check: impl AsyncFn(&TestApp, &str)) {
    let setup = Setup::default().with("LLM_SDK", "mock").with("SESSION_MESSAGE_BUFFER_DEFAULT_TTL_SECONDS", "1h");
    run_with(setup, async |app| {
        let all = async {
            let operations: Vec<_> = of_projects().collect();
            assert!(operations.len() > 40, "only {operations:?} were found");
            for operation in operations {
                check(&app, &operation).await;
            }
        };
        tokio::select! {
            ended = app.run_jobs() => panic!("the runner ended: {ended:?}"),
            () = all => {}
        }
    })
    .await;
}

/// Wants a request with ids of another project to be refused, and to change nothing.
async fn assert_kept_out(app: &TestApp, operation: &str, request: &Sample, stranger: &Client) {
    let before = app.state().await;
    let answer = request.send(stranger).await;
    let what = format!("{operation} as {}: {}", request.path, answer.text());
    let is_refusal = matches!(answer.status, StatusCode::FORBIDDEN | StatusCode::NOT_FOUND);
    assert!(is_refusal || FINE.contains(&operation) && answer.status == StatusCode::OK, "{what}");
    assert!(!answer.text().contains("no such route"), "{what}");
    assert_eq!(app.state().await, before, "{what}");
}

#[tokio::test]
async fn ids_of_another_project_open_nothing() {
    for_each_operation(async |app, operation| {
        let (owner, stranger) = (app.project().await, app.project().await);
        let theirs = sample(app, &owner, operation).await;
        if !operation.contains('{') {
            return;
        }
        assert_kept_out(app, operation, &theirs, &stranger).await;
        // It was not refused for another reason.
        let answer = theirs.send(&owner).await;
        assert!(answer.status.is_success(), "{operation}: {}", answer.text());
    })
    .await;
}

#[tokio::test]
async fn ids_of_another_project_among_ones_own_open_nothing() {
    for_each_operation(async |app, operation| {
        let (owner, stranger) = (app.project().await, app.project().await);
        let (theirs, own) = (sample(app, &owner, operation).await, sample(app, &stranger, operation).await);
        let (_, template) = operation.split_once(' ').unwrap();
        for request in mixtures(template, &own, &theirs) {
            assert_kept_out(app, operation, &request, &stranger).await;
        }
        let answer = own.send(&stranger).await;
        assert!(answer.status.is_success(), "{operation}: {}", answer.text());
    })
    .await;
}

/// One's own request with one part of another's: an id in the path, the query, or the body.
fn mixtures(template: &str, own: &Sample, theirs: &Sample) -> Vec<Sample> {
    let with = |path: String, body: &(String, Vec<u8>)| Sample {
        client: own.client.clone(),
        method: own.method.clone(),
        path,
        body: body.clone(),
    };
    let mut mixtures = Vec::new();
    let ids: Vec<usize> =
        template.split('/').enumerate().filter(|(_, name)| name.starts_with('{')).map(|(n, _)| n).collect();
    for at in ids.iter().filter(|_| ids.len() > 1) {
        let mut segments: Vec<&str> = own.path.split('/').collect();
        segments[*at] = theirs.path.split('/').nth(*at).unwrap();
        mixtures.push(with(segments.join("/"), &own.body));
    }
    if let (Some((path, mine)), Some((_, query))) = (own.path.split_once('?'), theirs.path.split_once('?'))
        && mine != query
    {
        mixtures.push(with(format!("{path}?{query}"), &own.body));
    }
    if own.body != theirs.body {
        mixtures.push(with(own.path.clone(), &theirs.body));
    }
    mixtures
}

#[tokio::test]
async fn lists_show_nothing_of_another_project() {
    for_each_operation(async |app, operation| {
        if !operation.starts_with("GET ") || operation.contains('{') {
            return;
        }
        let (owner, stranger) = (app.project().await, app.project().await);
        let theirs = sample(app, &owner, operation).await;
        let listed = ids(&theirs.send(&owner).await);
        assert!(!listed.is_empty() || SAYS_NO_IDS.iter().any(|end| operation.ends_with(end)), "{operation}");
        let shown = theirs.send(&stranger).await;
        assert_eq!(shown.status, StatusCode::OK, "{operation}: {}", shown.text());
        assert!(listed.iter().all(|id| !shown.text().contains(id)), "{operation}: {}", shown.text());
    })
    .await;
}

/// The ids of the entries of a list.
fn ids(list: &Answer) -> Vec<String> {
    let data = list.data();
    let items = data["items"].as_array().cloned().unwrap_or_default();
    items.iter().map(|item| item["id"].as_str().unwrap().to_owned()).collect()
}
