//! Describes responses in the API's document by the types of their bodies.

use std::collections::BTreeMap;

use utoipa::ToSchema;
use utoipa::openapi::extensions::ExtensionsBuilder;
use utoipa::openapi::{ContentBuilder, Ref, RefOr, Response, ResponseBuilder, Schema};

/// The schemas that the description of a response refers to; [`super::openapi::complete`] moves them to the components of the document.
pub(super) const SCHEMAS: &str = "x-schemas";

/// The schema of a response's body, and all schemas that it refers to.
pub(super) struct BodySchema {
    name: String,
    schemas: BTreeMap<String, RefOr<Schema>>,
}

impl BodySchema {
    /// A body of a type without type arguments.
    pub(super) fn of<B: ToSchema>() -> Self {
        let mut schemas = vec![(B::name().into_owned(), B::schema())];
        B::schemas(&mut schemas);
        Self { name: B::name().into_owned(), schemas: schemas.into_iter().collect() }
    }

    /// A body of type `B` with the property `data`, which has this schema and refers to `T`. It needs a name, because
    /// [`ToSchema::name`] leaves type arguments out.
    pub(super) fn with_data<B: ToSchema, T: ToSchema>(name: String, data: RefOr<Schema>) -> Self {
        let Self { mut schemas, .. } = Self::of::<T>();
        let mut envelope = B::schema();
        if let RefOr::T(Schema::Object(object)) = &mut envelope {
            object.properties.insert("data".into(), data);
        }
        schemas.insert(name.clone(), envelope);
        Self { name, schemas }
    }
}

/// Describes a JSON response.
pub(super) fn describe_response(
    status: &str,
    description: &str,
    BodySchema { name, schemas }: BodySchema,
) -> (String, RefOr<Response>) {
    let response = ResponseBuilder::new()
        .description(description)
        .content("application/json", ContentBuilder::new().schema(Some(Ref::from_schema_name(name))).build())
        .extensions(Some(ExtensionsBuilder::new().add(SCHEMAS, serde_json::json!(schemas)).build()))
        .build();
    (status.to_owned(), response.into())
}

/// Describes a JSON response whose schema is part of the description.
pub(super) fn inline_response<B: ToSchema>(description: &str) -> RefOr<Response> {
    let content = ContentBuilder::new().schema(Some(B::schema())).build();
    ResponseBuilder::new().description(description).content("application/json", content).build().into()
}
