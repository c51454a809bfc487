//! The OpenAPI document and its Swagger UI. Each operation is described at its handler. This file adds what all operations share.
//! A test compares the document with `openapi/openapi.json`.

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
use super::extract::{Path, PathParam};
use super::idempotency;
use super::response::ErrorResponse;
use crate::error::{Error, Result};

/// Moves the schemas in the extensions of responses to the components of the document.
fn move_schemas_to_components(api: &mut OpenApi) {
    let mut schemas: BTreeMap<String, RefOr<Schema>> = BTreeMap::new();
    for item in api.paths.paths.values_mut() {
        let PathItem { get, post, put, patch, delete, .. } = item;
        let operations = [get, post, put, patch, delete].into_iter().flatten();
        for response in operations.flat_map(|operation| operation.responses.responses.values_mut()) {
            if let RefOr::T(response) = response
                && let Some(mut extensions) = response.extensions.take()
                && let Some(extension) = extensions.remove(describe::SCHEMAS_EXTENSION)
            {
                let referenced: BTreeMap<String, RefOr<Schema>> = serde_json::from_value(extension).unwrap_or_default();
                schemas.extend(referenced);
            }
        }
    }
    api.components.get_or_insert_default().schemas.extend(schemas);
}

/// The error responses that an idempotency key can cause: status, component name, description.
const IDEMPOTENCY_ERRORS: [(&str, &str, &str); 2] = [
    (
        "409",
        "Conflict",
        "Conflicts with the current state, or a request with the same `Idempotency-Key` is in progress",
    ),
    ("422", "IdempotencyKeyReused", "The `Idempotency-Key` was already used for a different request"),
];

/// Documents idempotency keys in every operation that changes something.
fn document_idempotency(api: &mut OpenApi) {
    let responses = &mut api.components.get_or_insert_default().responses;
    responses.extend(IDEMPOTENCY_ERRORS.map(|(_, name, description)| {
        (name.to_owned(), describe::describe_inline_response::<ErrorResponse<'_>>(description))
    }));
    for item in api.paths.paths.values_mut() {
        let PathItem { post, put, patch, delete, .. } = item;
        for operation in [post, put, patch, delete].into_iter().flatten() {
            document_idempotency_of(operation);
        }
    }
}

fn document_idempotency_of(operation: &mut Operation) {
    operation.parameters.get_or_insert_default().push(idempotency_key_parameter().into());
    let responses = &mut operation.responses.responses;
    for (status, response) in responses.iter_mut() {
        if let RefOr::T(response) = response
            && status.starts_with('2')
        {
            let mut header = Header::new(ObjectBuilder::new().schema_type(Type::Boolean));
            let description = "`true` if this is the stored response of an earlier request with the same \
                               `Idempotency-Key`; otherwise absent";
            header.description = Some(description.into());
            response.headers.insert("Idempotent-Replayed".into(), header.into());
        }
    }
    for (status, name, _) in IDEMPOTENCY_ERRORS {
        responses.entry(status.into()).or_insert_with(|| Ref::from_response_name(name).into());
    }
}

fn idempotency_key_parameter() -> Parameter {
    let description = "Makes the request idempotent: repeating it with the same key within 24 hours returns the stored \
                       response. Only successful responses are stored.";
    let schema = ObjectBuilder::new().schema_type(Type::String).min_length(Some(1)).max_length(Some(255));
    ParameterBuilder::new()
        .name(idempotency::HEADER)
        .parameter_in(ParameterIn::Header)
        .description(Some(description))
        .schema(Some(schema.pattern(Some("^[!-~]+$"))))
        .build()
}

/// Adds the title, the security schemes, the schemas and the idempotency keys to the document of the routes.
pub fn complete_document(mut api: OpenApi) -> OpenApi {
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
    document_idempotency(&mut api);
    let components = api.components.get_or_insert_default();
    components.add_security_scheme("BearerAuth", bearer("The API key of a project, `sk-ac-…`"));
    components.add_security_scheme("AdminToken", bearer("`ADMIN_API_TOKEN`, here or in the header `X-Access-Token`"));
    api.security = Some(vec![SecurityRequirement::new("BearerAuth", Vec::<String>::new())]);
    api
}

/// The OpenAPI document as served, and its operations.
pub struct ApiDocument {
    json: Bytes,
    operations: HashSet<(String, Method)>,
}

impl ApiDocument {
    /// Serializes the document.
    ///
    /// # Errors
    /// Returns an error if the document cannot be serialized.
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

    /// Returns `true` if the document contains the operation. HEAD counts as GET.
    pub fn has_operation(&self, route: &str, method: &Method) -> bool {
        let method = if *method == Method::HEAD { &Method::GET } else { method };
        self.operations.contains(&(route.to_owned(), method.clone()))
    }
}

/// Serves the OpenAPI document.
pub async fn serve_document(State(document): State<Arc<ApiDocument>>) -> Response {
    response_with_type("application/json", Body::from(document.json.clone()))
}

/// Redirects browsers to the Swagger UI.
pub async fn redirect_to_swagger() -> Response {
    (StatusCode::MOVED_PERMANENTLY, [(header::LOCATION, "/swagger/index.html")]).into_response()
}

/// The path of a file of the Swagger UI.
pub struct SwaggerFile(String);

impl PathParam for SwaggerFile {
    const NAME: &'static str = "file";

    fn parse(text: &str) -> Result<Self, &'static str> {
        Ok(Self(text.to_owned()))
    }
}

static SWAGGER_CONFIG: LazyLock<Arc<utoipa_swagger_ui::Config<'static>>> =
    LazyLock::new(|| Arc::new(utoipa_swagger_ui::Config::from("/swagger/doc.json")));

/// Serves a file of the Swagger UI.
pub async fn serve_swagger_ui(Path(SwaggerFile(path)): Path<SwaggerFile>) -> Result<Response> {
    let file = utoipa_swagger_ui::serve(&path, SWAGGER_CONFIG.clone());
    let file = file.map_err(|err| Error::internal(anyhow::anyhow!("{err}")))?;
    let file = file.ok_or(Error::NotFound("page not found"))?;
    Ok(response_with_type(&file.content_type, Body::from(file.bytes.into_owned())))
}

fn response_with_type(content_type: &str, body: Body) -> Response {
    let mut response = Response::new(body);
    if let Ok(content_type) = HeaderValue::from_str(content_type) {
        response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    }
    response
}
