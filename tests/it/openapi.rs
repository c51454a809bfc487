//! The committed API description is up to date and is served.

use std::collections::BTreeSet;

use axum::http::StatusCode;

use crate::support::{document, run};

const COMMITTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi/openapi.json");

#[test]
#[expect(clippy::disallowed_methods, reason = "an option of this test, not a setting of the server")]
fn the_committed_document_is_up_to_date() {
    let current = document().to_pretty_json().unwrap() + "\n";
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        std::fs::create_dir_all(concat!(env!("CARGO_MANIFEST_DIR"), "/openapi")).unwrap();
        std::fs::write(COMMITTED, &current).unwrap();
    }
    let committed = std::fs::read_to_string(COMMITTED).unwrap_or_default();
    assert!(
        committed == current,
        "openapi/openapi.json differs from the code: run 'make openapi' and review the difference"
    );
}

#[test]
fn every_operation_has_an_id_a_summary_and_error_responses() {
    let document = serde_json::to_value(document()).unwrap();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let name = format!("{method} {path}");
            assert!(operation["operationId"].is_string(), "{name}");
            assert!(operation["summary"].is_string(), "{name}");
            if path != "/health" {
                assert!(operation["responses"]["4XX"].is_object(), "{name}");
            }
        }
    }
}

#[test]
fn every_reference_names_a_component() {
    let document = serde_json::to_value(document()).unwrap();
    let text = document.to_string();
    let references: BTreeSet<_> =
        text.split("\"$ref\":\"#").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    assert!(references.contains("/components/schemas/Disk"), "{references:?}");
    for reference in references {
        assert!(document.pointer(reference).is_some(), "{reference} is not in the document");
    }
}

#[tokio::test]
async fn the_document_and_its_page_are_served_without_a_key() {
    run(async |app| {
        let client = app.client();
        for path in ["/openapi.json", "/swagger/doc.json"] {
            let response = client.get(path).await;
            assert_eq!((response.status, response.header("content-type")), (StatusCode::OK, "application/json"));
            assert_eq!(response.json()["info"]["title"], "Acontext API");
        }
        let page = client.get("/swagger/index.html").await;
        assert_eq!((page.status, page.header("content-type")), (StatusCode::OK, "text/html"));
        let script = client.get("/swagger/swagger-initializer.js").await;
        assert!(script.text().contains("/swagger/doc.json"), "{}", script.text());
        let redirect = client.get("/swagger").await;
        assert_eq!((redirect.status.as_u16(), redirect.header("location")), (301, "/swagger/index.html"));
        client.get("/swagger/nothing.html").await.assert_error(404, "page not found");
    })
    .await;
}
