//! Builds the descriptions of responses in the OpenAPI document from the types of the bodies.

use std::collections::BTreeMap;

use utoipa::ToSchema;
use utoipa::openapi::extensions::ExtensionsBuilder;
use utoipa::openapi::{ContentBuilder, Ref, RefOr, Response, ResponseBuilder, Schema};

/// The name of the extension that contains the schemas to which the description of a response refers.
/// [`super::openapi::complete_document`] moves the schemas to the components of the document.
pub(super) const SCHEMAS_EXTENSION: &str = "x-schemas";

/// The schema of a response body, and all schemas to which it refers.
pub(super) struct BodySchema {
    name: String,
    schemas: BTreeMap<String, RefOr<Schema>>,
}

impl BodySchema {
    /// Returns the schema of `B`, which must have no type arguments.
    pub(super) fn for_type<B: ToSchema>() -> Self {
        let mut schemas = vec![(B::name().into_owned(), B::schema())];
        B::schemas(&mut schemas);
        Self { name: B::name().into_owned(), schemas: schemas.into_iter().collect() }
    }

    /// Returns the schema of the response envelope `B`. `data` is the schema of the property `data` and refers to `T`. The caller
    /// chooses the name, because [`ToSchema::name`] omits type arguments.
    pub(super) fn with_data<B: ToSchema, T: ToSchema>(name: String, data: RefOr<Schema>) -> Self {
        let Self { mut schemas, .. } = Self::for_type::<T>();
        let mut envelope = B::schema();
        if let RefOr::T(Schema::Object(object)) = &mut envelope {
            object.properties.insert("data".into(), data);
        }
        schemas.insert(name.clone(), envelope);
        Self { name, schemas }
    }
}

/// Describes a JSON response whose schema becomes a component of the document.
pub(super) fn describe_response(
    status: &str,
    description: &str,
    BodySchema { name, schemas }: BodySchema,
) -> (String, RefOr<Response>) {
    let response = ResponseBuilder::new()
        .description(description)
        .content("application/json", ContentBuilder::new().schema(Some(Ref::from_schema_name(name))).build())
        .extensions(Some(ExtensionsBuilder::new().add(SCHEMAS_EXTENSION, serde_json::json!(schemas)).build()))
        .build();
    (status.to_owned(), response.into())
}

/// Describes a JSON response whose schema is inlined.
pub(super) fn describe_inline_response<B: ToSchema>(description: &str) -> RefOr<Response> {
    let content = ContentBuilder::new().schema(Some(B::schema())).build();
    ResponseBuilder::new().description(description).content("application/json", content).build().into()
}
