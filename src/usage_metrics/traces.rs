//! The HTTP handler for traces, which forwards queries to Jaeger.

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

/// The maximum duration of the request to Jaeger.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The tag of this server's spans that contains the project id.
const PROJECT_ID_TAG: &str = "project.id";

/// The parameters of Jaeger's trace query.
#[derive(Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default)]
pub struct FindTracesParams {
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
    /// A JSON object as text. The server adds the project id to it.
    tags: Option<String>,
}

/// Find traces of a project
///
/// Queries the Jaeger instance at `JAEGER_QUERY_ENDPOINT` and returns its response unchanged.
#[utoipa::path(get, path = "/admin/v1/project/{project_id}/metrics", tag = "admin",
    params(("project_id" = ProjectId, Path), FindTracesParams), security(("AdminToken" = [])),
    responses((status = 200, description = "The response of Jaeger", content_type = "application/json")))]
pub async fn find_traces(
    State(platform): State<Platform>,
    Path(project): Path<ProjectId>,
    Query(query): Query<FindTracesParams>,
) -> Result<RawResponse> {
    let Some(endpoint) = platform.config.telemetry.jaeger_query_endpoint.as_deref() else {
        let msg = "traces are not available: JAEGER_QUERY_ENDPOINT is not set";
        return Err(Error::unavailable(msg));
    };
    let mut tags = parse_tags(query.tags.as_deref())?;
    tags.insert(PROJECT_ID_TAG.into(), project.to_string().into());
    let tags = Value::Object(tags).to_string();
    let params = [
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
    let params: Vec<_> = params.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    let url = format!("{}/api/traces", endpoint.trim_end_matches('/'));
    let upstream = platform.http_client.get(url).query(&params).timeout(TIMEOUT).send().await.map_err(|err| {
        Error::BadGateway { msg: "failed to query Jaeger".into(), cause: Some(err.without_url().into()) }
    })?;
    let mut response = Response::builder().status(upstream.status());
    for name in [header::CONTENT_TYPE, header::CONTENT_ENCODING] {
        if let Some(value) = upstream.headers().get(&name) {
            response = response.header(name, value);
        }
    }
    response.body(Body::from_stream(upstream.bytes_stream())).map(Into::into).map_err(Error::internal)
}

/// Parses the `tags` parameter. Returns no tags if the parameter is absent or empty.
fn parse_tags(text: Option<&str>) -> Result<Map<String, Value>> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(Map::new()) };
    match json::parse(text.as_bytes()) {
        Ok(Value::Object(tags)) => Ok(tags),
        _ => Err(Error::invalid_field("tags", "must be a JSON object")),
    }
}
