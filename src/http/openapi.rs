//! The API's description. Each path stands once, above its handler; this file adds what they share. The document is compared
//! with `openapi/openapi.json` by a test.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, LazyLock};

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use utoipa::openapi::header::Header;
use utoipa::openapi::path::{Operation, Parameter, ParameterBuilder, ParameterIn, PathItem};
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{InfoBuilder, OpenApi, Ref, RefOr, Schema};

use super::describe;
use super::extract::Path;
use super::idempotency;
use super::response::ErrorResponse;
use crate::error::{Error, Result};

fn move_schemas_to_components(api: &mut OpenApi) {
    let mut schemas: BTreeMap<String, RefOr<Schema>> = BTreeMap::new();
    for item in api.paths.paths.values_mut() {
        let PathItem { get, post, put, patch, delete, .. } = item;
        let operations = [get, post, put, patch, delete].into_iter().flatten();
        for response in operations.flat_map(|operation| operation.responses.responses.values_mut()) {
            if let RefOr::T(response) = response
                && let Some(mut extensions) = response.extensions.take()
                && let Some(described) = extensions.remove(describe::SCHEMAS)
            {
                let described: BTreeMap<String, RefOr<Schema>> = serde_json::from_value(described).unwrap_or_default();
                schemas.extend(described);
            }
        }
    }
    api.components.get_or_insert_default().schemas.extend(schemas);
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
    responses.extend(
        KEY_REFUSALS.map(|(_, name, text)| (name.to_owned(), describe::inline_response::<ErrorResponse<'_>>(text))),
    );
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

/// Adds to the document of the routes what they share.
pub fn complete(mut api: OpenApi) -> OpenApi {
    api.info = InfoBuilder::new()
        .title("Acontext API")
        .version("1.0")
        .description(Some("Data and memory backend for AI agents, served by acontextd."))
        .build();
    let bearer = |description: &str| {
        let http = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(description)).build();
        SecurityScheme::Http(http)
    };
    move_schemas_to_components(&mut api);
    describe_keys(&mut api);
    let components = api.components.get_or_insert_default();
    components.add_security_scheme("BearerAuth", bearer("A project's key, `sk-ac-…`"));
    components.add_security_scheme("AdminToken", bearer("`ADMIN_API_TOKEN`, here or in `X-Access-Token`"));
    api.security = Some(vec![SecurityRequirement::new("BearerAuth", Vec::<String>::new())]);
    api
}

/// The API's description as it is served, and the operations in it.
pub struct ApiDocument {
    json: Bytes,
    operations: HashSet<(String, Method)>,
}

impl ApiDocument {
    /// # Errors
    /// The document cannot be serialized, which a test excludes.
    pub fn new(api: &OpenApi) -> anyhow::Result<Self> {
        let mut operations = HashSet::new();
        for (path, item) in &api.paths.paths {
            let PathItem { get, post, put, patch, delete, .. } = item;
            for (method, operation) in [
                (Method::GET, get),
                (Method::POST, post),
                (Method::PUT, put),
                (Method::PATCH, patch),
                (Method::DELETE, delete),
            ] {
                if operation.is_some() {
                    operations.insert((path.clone(), method));
                }
            }
        }
        Ok(Self { json: api.to_json()?.into(), operations })
    }

    /// Returns `true` if the document has this operation; a HEAD is a GET.
    pub fn has_operation(&self, route: &str, method: &Method) -> bool {
        let method = if *method == Method::HEAD { &Method::GET } else { method };
        self.operations.contains(&(route.to_owned(), method.clone()))
    }
}

/// Serves the document.
pub async fn serve(State(document): State<Arc<ApiDocument>>) -> Response {
    file("application/json", Body::from(document.json.clone()))
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
    let found = found.map_err(|err| Error::internal(anyhow::anyhow!("{err}")))?;
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
