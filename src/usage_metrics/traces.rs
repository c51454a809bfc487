//! Passes questions about a project's traces on to Jaeger.

use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::http::extract::{Path, Query};
use crate::http::response::RawResponse;
use crate::ids::ProjectId;
use crate::json;
use crate::platform::Platform;

const TIMEOUT: Duration = Duration::from_secs(30);
/// What the spans of this server tell their project by.
const PROJECT: &str = "project.id";

/// As Jaeger takes them.
#[derive(Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default)]
pub struct FindTraces {
    service: Option<String>,
    operation: Option<String>,
    start: Option<String>,
    end: Option<String>,
    limit: Option<String>,
    lookback: Option<String>,
    #[serde(rename = "minDuration")]
    min_duration: Option<String>,
    #[serde(rename = "maxDuration")]
    max_duration: Option<String>,
    /// A JSON object as text; the project is added to it.
    tags: Option<String>,
}

/// Find traces of a project
///
/// Asks the Jaeger at `JAEGER_QUERY_ENDPOINT`, and passes its answer on as it is.
#[utoipa::path(get, path = "/admin/v1/project/{project_id}/metrics", tag = "admin",
    params(("project_id" = ProjectId, Path), FindTraces), security(("AdminToken" = [])),
    responses((status = 200, description = "As Jaeger answers", content_type = "application/json")))]
pub async fn find_traces(
    State(platform): State<Platform>,
    Path(project): Path<ProjectId>,
    Query(query): Query<FindTraces>,
) -> Result<RawResponse> {
    let Some(endpoint) = platform.config.telemetry.jaeger_query_endpoint.as_deref() else {
        let msg = "there are no traces to be asked: the server was started without JAEGER_QUERY_ENDPOINT";
        return Err(Error::unavailable(msg));
    };
    let mut tags = tags(query.tags.as_deref())?;
    tags.insert(PROJECT.into(), project.to_string().into());
    let tags = Value::Object(tags).to_string();
    let asked = [
        ("service", query.service),
        ("operation", query.operation),
        ("start", query.start),
        ("end", query.end),
        ("limit", query.limit),
        ("lookback", query.lookback),
        ("minDuration", query.min_duration),
        ("maxDuration", query.max_duration),
        ("tags", Some(tags)),
    ];
    let asked: Vec<_> = asked.into_iter().filter_map(|(name, text)| Some((name, text?))).collect();
    let url = format!("{}/api/traces", endpoint.trim_end_matches('/'));
    let answer = platform.http_client.get(url).query(&asked).timeout(TIMEOUT).send().await.map_err(|err| {
        Error::Upstream { msg: "failed to query Jaeger".into(), cause: Some(err.without_url().into()) }
    })?;
    let mut response = Response::builder().status(answer.status());
    for name in [header::CONTENT_TYPE, header::CONTENT_ENCODING] {
        if let Some(value) = answer.headers().get(&name) {
            response = response.header(name, value);
        }
    }
    response.body(Body::from_stream(answer.bytes_stream())).map(Into::into).map_err(Error::internal)
}

fn tags(text: Option<&str>) -> Result<Map<String, Value>> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(Map::new()) };
    match json::parse(text.as_bytes()) {
        Ok(Value::Object(tags)) => Ok(tags),
        _ => Err(Error::invalid_field("tags", "must be a JSON object")),
    }
}
