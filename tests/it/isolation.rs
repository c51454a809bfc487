//! No operation of the API description gives a project access to the data of another one.

use acontextd::features::ACCESS_RULES;
use axum::http::StatusCode;

use crate::support::client::{Client, TestResponse};
use crate::support::samples::{SampleRequest, operations, sample_request};
use crate::support::{TestApp, TestConfig, run_with};

/// Deletes that succeed if the entity does not exist in the project. They change nothing.
const IDEMPOTENT_DELETES: [&str; 2] =
    ["DELETE /api/v1/user/{identifier}", "DELETE /api/v1/learning_spaces/{space_id}/skills/{skill_id}"];

/// The path suffixes of operations whose responses contain no ids.
const RESPONSES_WITHOUT_IDS: [&str; 4] = ["/ping", "/configs", "/encryption", "/model_usage"];

/// Returns the operations that require a project key.
fn project_operations() -> impl Iterator<Item = String> {
    operations().into_iter().filter(|operation| {
        let (_, path) = operation.split_once(' ').unwrap();
        !path.starts_with("/admin/") && !path.starts_with("/metrics") && !ACCESS_RULES.public.contains(&path)
    })
}

/// Runs a check of each operation while jobs run.
async fn for_each_operation(check: impl AsyncFn(&TestApp, &str)) {
    let config = TestConfig::default().with("LLM_SDK", "mock").with("SESSION_MESSAGE_BUFFER_DEFAULT_TTL_SECONDS", "1h");
    run_with(config, async |app| {
        let all = async {
            let operations: Vec<_> = project_operations().collect();
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

/// Asserts that a request with ids of another project is rejected and changes nothing.
async fn assert_denied(app: &TestApp, operation: &str, request: &SampleRequest, stranger: &Client) {
    let before = app.state().await;
    let response = request.send(stranger).await;
    let context = format!("{operation} as {}: {}", request.path, response.text());
    let is_rejected = matches!(response.status, StatusCode::FORBIDDEN | StatusCode::NOT_FOUND);
    assert!(is_rejected || IDEMPOTENT_DELETES.contains(&operation) && response.status == StatusCode::OK, "{context}");
    assert!(!response.text().contains("route not found"), "{context}");
    assert_eq!(app.state().await, before, "{context}");
}

#[tokio::test]
async fn ids_of_another_project_give_no_access() {
    for_each_operation(async |app, operation| {
        let (owner, stranger) = (app.project().await, app.project().await);
        let theirs = sample_request(app, &owner, operation).await;
        if !operation.contains('{') {
            return;
        }
        assert_denied(app, operation, &theirs, &stranger).await;
        // The request is valid, so that it was not rejected for another reason.
        let response = theirs.send(&owner).await;
        assert!(response.status.is_success(), "{operation}: {}", response.text());
    })
    .await;
}

#[tokio::test]
async fn ids_of_another_project_among_own_ids_give_no_access() {
    for_each_operation(async |app, operation| {
        let (owner, stranger) = (app.project().await, app.project().await);
        let (theirs, own) =
            (sample_request(app, &owner, operation).await, sample_request(app, &stranger, operation).await);
        let (_, template) = operation.split_once(' ').unwrap();
        for request in mixed_requests(template, &own, &theirs) {
            assert_denied(app, operation, &request, &stranger).await;
        }
        let response = own.send(&stranger).await;
        assert!(response.status.is_success(), "{operation}: {}", response.text());
    })
    .await;
}

/// Returns variants of `own`, each with one part of `theirs`: an id in the path, the query, or the body.
fn mixed_requests(template: &str, own: &SampleRequest, theirs: &SampleRequest) -> Vec<SampleRequest> {
    let with = |path: String, body: &(String, Vec<u8>)| SampleRequest {
        client: own.client.clone(),
        method: own.method.clone(),
        path,
        body: body.clone(),
    };
    let mut requests = Vec::new();
    let ids: Vec<usize> =
        template.split('/').enumerate().filter(|(_, name)| name.starts_with('{')).map(|(n, _)| n).collect();
    for index in ids.iter().filter(|_| ids.len() > 1) {
        let mut segments: Vec<&str> = own.path.split('/').collect();
        segments[*index] = theirs.path.split('/').nth(*index).unwrap();
        requests.push(with(segments.join("/"), &own.body));
    }
    if let (Some((path, own_query)), Some((_, their_query))) = (own.path.split_once('?'), theirs.path.split_once('?'))
        && own_query != their_query
    {
        requests.push(with(format!("{path}?{their_query}"), &own.body));
    }
    if own.body != theirs.body {
        requests.push(with(own.path.clone(), &theirs.body));
    }
    requests
}

#[tokio::test]
async fn lists_return_nothing_of_another_project() {
    for_each_operation(async |app, operation| {
        if !operation.starts_with("GET ") || operation.contains('{') {
            return;
        }
        let (owner, stranger) = (app.project().await, app.project().await);
        let theirs = sample_request(app, &owner, operation).await;
        let their_ids = entry_ids(&theirs.send(&owner).await);
        assert!(
            !their_ids.is_empty() || RESPONSES_WITHOUT_IDS.iter().any(|end| operation.ends_with(end)),
            "{operation}"
        );
        let response = theirs.send(&stranger).await;
        assert_eq!(response.status, StatusCode::OK, "{operation}: {}", response.text());
        assert!(their_ids.iter().all(|id| !response.text().contains(id)), "{operation}: {}", response.text());
    })
    .await;
}

/// Returns the ids of the entries of a list.
fn entry_ids(list: &TestResponse) -> Vec<String> {
    let data = list.data();
    let items = data["items"].as_array().cloned().unwrap_or_default();
    items.iter().map(|item| item["id"].as_str().unwrap().to_owned()).collect()
}
