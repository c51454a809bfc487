//! The API's description. Each path stands once, above its handler; this file adds what they share. The document is compared
//! with `openapi/openapi.json` by a test.

use std::sync::{Arc, LazyLock};

use axum::body::Body;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use utoipa::openapi::header::Header;
use utoipa::openapi::path::{Operation, Parameter, ParameterBuilder, ParameterIn, PathItem};
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{ContentBuilder, InfoBuilder, OpenApi, Ref, RefOr, ResponseBuilder, Schema};
use utoipa::{IntoResponses, PartialSchema};

use super::extract::Path;
use super::idempotency;
use super::response::ErrorResponse;
use crate::app;
use crate::error::{Error, Result};

/// The answers that every route may give besides its own.
pub struct Refusals;

impl IntoResponses for Refusals {
    fn responses() -> std::collections::BTreeMap<String, RefOr<utoipa::openapi::response::Response>> {
        std::collections::BTreeMap::from([
            ("4XX".to_owned(), refusal("Refused; `code` is the status, `msg` names the field or what is missing")),
            ("5XX".to_owned(), refusal("A fault of the server; 503 may work in a moment")),
        ])
    }
}

fn refusal(text: &str) -> RefOr<utoipa::openapi::response::Response> {
    let schema: RefOr<Schema> = ErrorResponse::schema();
    let content = ContentBuilder::new().schema(Some(schema)).build();
    ResponseBuilder::new().description(text).content("application/json", content).build().into()
}

/// The refusals that a key may cause: status, name in the document, text.
const KEY_REFUSALS: [(&str, &str, &str); 2] = [
    (
        "409",
        "Conflict",
        "It does not fit what is there, or a request with its `Idempotency-Key` is still being worked on",
    ),
    ("422", "AnotherRequest", "Its `Idempotency-Key` came with another request before"),
];

/// Adds to every operation that acts what a key makes of it.
fn describe_keys(api: &mut OpenApi) {
    let responses = &mut api.components.get_or_insert_default().responses;
    responses.extend(KEY_REFUSALS.map(|(_, name, text)| (name.to_owned(), refusal(text))));
    for item in api.paths.paths.values_mut() {
        let PathItem { post, put, patch, delete, .. } = item;
        for operation in [post, put, patch, delete].into_iter().flatten() {
            describe_key(operation);
        }
    }
}

fn describe_key(operation: &mut Operation) {
    operation.parameters.get_or_insert_default().push(key_parameter().into());
    let responses = &mut operation.responses.responses;
    for (status, response) in responses.iter_mut() {
        if let RefOr::T(response) = response
            && status.starts_with('2')
        {
            let mut header = Header::new(ObjectBuilder::new().schema_type(Type::Boolean));
            header.description = Some("`true` if this is what the request was answered before; else left out".into());
            response.headers.insert("Idempotent-Replayed".into(), header.into());
        }
    }
    for (status, name, _) in KEY_REFUSALS {
        responses.entry(status.into()).or_insert_with(|| Ref::from_response_name(name).into());
    }
}

fn key_parameter() -> Parameter {
    let text = "Sent again within 24 hours with the same key, the same request gets the same answer and does nothing more. \
                Only successes are kept.";
    let schema = ObjectBuilder::new().schema_type(Type::String).min_length(Some(1)).max_length(Some(255));
    ParameterBuilder::new()
        .name(idempotency::HEADER)
        .parameter_in(ParameterIn::Header)
        .description(Some(text))
        .schema(Some(schema.pattern(Some("^[!-~]+$"))))
        .build()
}

/// The document.
pub fn document() -> OpenApi {
    let mut api = app::routes().into_openapi();
    api.info = InfoBuilder::new()
        .title("Acontext API")
        .version("1.0")
        .description(Some("Data and memory backend for AI agents, served by acontextd."))
        .build();
    let bearer = |description: &str| {
        let http = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(description)).build();
        SecurityScheme::Http(http)
    };
    describe_keys(&mut api);
    let components = api.components.get_or_insert_default();
    components.add_security_scheme("BearerAuth", bearer("A project's key, `sk-ac-…`"));
    components.add_security_scheme("AdminToken", bearer("`ADMIN_API_TOKEN`, here or in `X-Access-Token`"));
    api.security = Some(vec![SecurityRequirement::new("BearerAuth", Vec::<String>::new())]);
    api
}

static JSON: LazyLock<Result<String, serde_json::Error>> = LazyLock::new(|| document().to_json());

/// Every operation, for the question whether there is one.
static OPERATIONS: LazyLock<Vec<(String, Method)>> = LazyLock::new(|| {
    let document = serde_json::to_value(document()).unwrap_or_default();
    let paths = document["paths"].as_object().into_iter().flatten();
    let methods = |item: &serde_json::Value| {
        let names = item.as_object().into_iter().flat_map(|item| item.keys());
        names.filter_map(|name| name.to_uppercase().parse().ok()).collect::<Vec<Method>>()
    };
    paths.flat_map(|(path, item)| methods(item).into_iter().map(move |method| (path.clone(), method))).collect()
});

/// Whether the description has this operation; a HEAD is a GET.
pub fn has_operation(route: &str, method: &Method) -> bool {
    let method = if *method == Method::HEAD { &Method::GET } else { method };
    OPERATIONS.iter().any(|(path, known)| path == route && known == method)
}

/// Serves the document.
pub async fn serve() -> Result<Response> {
    let json = JSON.as_deref().map_err(|fault| Error::internal(anyhow::anyhow!("{fault}")))?;
    Ok(file("application/json", Body::from(json)))
}

/// Sends browsers to the page.
pub async fn to_swagger() -> Response {
    (StatusCode::MOVED_PERMANENTLY, [(header::LOCATION, "/swagger/index.html")]).into_response()
}

impl super::extract::PathParam for String {
    const NAME: &'static str = "file";

    fn read(text: &str) -> Result<Self, &'static str> {
        Ok(text.to_owned())
    }
}

static SWAGGER: LazyLock<Arc<utoipa_swagger_ui::Config<'static>>> =
    LazyLock::new(|| Arc::new(utoipa_swagger_ui::Config::from("/swagger/doc.json")));

/// Serves the page that shows the document.
pub async fn swagger(Path(name): Path<String>) -> Result<Response> {
    let found = utoipa_swagger_ui::serve(&name, SWAGGER.clone());
    let found = found.map_err(|fault| Error::internal(anyhow::anyhow!("{fault}")))?;
    let page = found.ok_or(Error::NotFound("no such page"))?;
    Ok(file(&page.content_type, Body::from(page.bytes.into_owned())))
}

fn file(content_type: &str, body: Body) -> Response {
    let mut response = Response::new(body);
    if let Ok(content_type) = HeaderValue::from_str(content_type) {
        response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    }
    response
}
