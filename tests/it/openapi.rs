//! The description of the API is what is committed, and is served.

use std::collections::BTreeSet;

use axum::http::StatusCode;

use crate::support::{document, run};

const COMMITTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi/openapi.json");

#[test]
#[expect(clippy::disallowed_methods, reason = "a switch of this test, not a setting of the program")]
fn the_committed_document_is_up_to_date() {
    let now = document().to_pretty_json().unwrap() + "\n";
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        std::fs::create_dir_all(concat!(env!("CARGO_MANIFEST_DIR"), "/openapi")).unwrap();
        std::fs::write(COMMITTED, &now).unwrap();
    }
    let committed = std::fs::read_to_string(COMMITTED).unwrap_or_default();
    assert!(
        committed == now,
        "openapi/openapi.json is not what the code says: run 'make openapi' and look at the difference"
    );
}

#[test]
fn every_operation_has_a_name_a_summary_and_its_refusals() {
    let document = serde_json::to_value(document()).unwrap();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let at = format!("{method} {path}");
            assert!(operation["operationId"].is_string(), "{at}");
            assert!(operation["summary"].is_string(), "{at}");
            if path != "/health" {
                assert!(operation["responses"]["4XX"].is_object(), "{at}");
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
async fn the_document_and_its_page_are_served_to_everybody() {
    run(async |app| {
        let client = app.client();
        for path in ["/openapi.json", "/swagger/doc.json"] {
            let answer = client.get(path).await;
            assert_eq!((answer.status, answer.header("content-type")), (StatusCode::OK, "application/json"));
            assert_eq!(answer.json()["info"]["title"], "Acontext API");
        }
        let page = client.get("/swagger/index.html").await;
        assert_eq!((page.status, page.header("content-type")), (StatusCode::OK, "text/html"));
        let script = client.get("/swagger/swagger-initializer.js").await;
        assert!(script.text().contains("/swagger/doc.json"), "{}", script.text());
        let way = client.get("/swagger").await;
        assert_eq!((way.status.as_u16(), way.header("location")), (301, "/swagger/index.html"));
        client.get("/swagger/nothing.html").await.assert_refused(404, "no such page");
    })
    .await;
}
