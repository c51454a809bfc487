//! What handlers take in. axum's own extractors answer refusals in their own words; these answer in ours, name the field,
//! and bind parameters by the rules that the existing clients rely on:
//!
//! - [`Json`]: the body is JSON whatever its content type says; only its first value is read; `null` is an empty object.
//! - [`Query`]: the query string; a repeated key counts once, the first.
//! - [`Params`]: the query and the body together, as JSON or as a form, so that a DELETE may carry its parameters in either.
//! - [`Fields`]: the body alone, as JSON or as a form.
//! - [`Path`]: one segment of the path.

use axum::extract::{FromRef, FromRequest, FromRequestParts, RawPathParams, Request};
use axum::http::Method;
use axum::http::request::Parts;
use bytes::Bytes;
use memchr::memchr_iter;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::body::{body_bytes, parse_body};
use super::context::RequestContext;
use super::head::media_type;
use crate::config::Limits;
use crate::error::{Error, Result};
use crate::{ids, json, percent};

/// A type that a request body is bound to.
pub trait RequestBody: DeserializeOwned + Send + 'static {
    /// Whether the body has free-form JSON objects. If not, no valid one is longer than [`FIXED_FORM`].
    const IS_FREE_FORM: bool;

    /// Returns the maximum length of the body in bytes.
    fn max_bytes(limits: &Limits) -> u64 {
        // Escapes may triple a text, and the object is not alone.
        if Self::IS_FREE_FORM { limits.meta.saturating_mul(4) } else { FIXED_FORM }
    }
}

/// The maximum length of a body without free-form objects, in bytes.
pub const FIXED_FORM: u64 = 64 * 1024;

/// A JSON body.
pub struct Json<T>(pub T);

impl<T: RequestBody, S: Send + Sync> FromRequest<S> for Json<T>
where
    RequestContext: FromRef<S>,
{
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self> {
        let ctx = RequestContext::from_ref(state);
        let body =
            parse_body(request, &ctx, T::max_bytes(&ctx.limits), |body| bind(Value::Object(first_object(&body)?)));
        body.await.map(Self)
    }
}

/// The query string.
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        bind(Value::Object(query_pairs(parts)?)).map(Self)
    }
}

/// The query string and the body, whichever the client used; the body wins.
pub struct Params<T>(pub T);

impl<T: RequestBody, S: Send + Sync> FromRequest<S> for Params<T>
where
    RequestContext: FromRef<S>,
{
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self> {
        let ctx = RequestContext::from_ref(state);
        let (parts, body) = request.into_parts();
        let mut fields = query_pairs(&parts)?;
        fields.extend(body_fields(Request::from_parts(parts, body), &ctx, T::max_bytes(&ctx.limits)).await?);
        bind(Value::Object(fields)).map(Self)
    }
}

/// The body alone, as JSON or as a form. Nothing at all is an empty form, but no JSON.
pub struct Fields<T>(pub T);

impl<T: RequestBody, S: Send + Sync> FromRequest<S> for Fields<T>
where
    RequestContext: FromRef<S>,
{
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self> {
        if media_type(request.headers()) == "application/json" {
            return Json::from_request(request, state).await.map(|Json(fields)| Self(fields));
        }
        let ctx = RequestContext::from_ref(state);
        let fields = body_fields(request, &ctx, T::max_bytes(&ctx.limits)).await?;
        bind(Value::Object(fields)).map(Self)
    }
}

/// The fields of a body, which may be missing.
async fn body_fields(request: Request, ctx: &RequestContext, limit: u64) -> Result<Map<String, Value>> {
    match media_type(request.headers()).as_str() {
        "multipart/form-data" => super::multipart::text_fields(request, ctx).await,
        "application/json" => {
            let parse = |body: Bytes| if body.is_empty() { Ok(Map::new()) } else { first_object(&body) };
            parse_body(request, ctx, limit, parse).await
        }
        _ if matches!(*request.method(), Method::POST | Method::PUT | Method::PATCH) => {
            pairs(&body_bytes(request, ctx, limit).await?)
        }
        _ => Ok(Map::new()),
    }
}

/// One segment of the path.
pub struct Path<T>(pub T);

/// What can stand in a path: its name in the route and how it is read.
pub trait PathParam: Sized {
    const NAME: &'static str;
    fn read(text: &str) -> Result<Self, &'static str>;
}

impl<T: PathParam, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self> {
        let params = RawPathParams::from_request_parts(parts, state)
            .await
            .map_err(|_| Error::invalid_field(T::NAME, "is not valid UTF-8"))?;
        let text = params.iter().find(|(name, _)| *name == T::NAME).map(|(_, text)| text).unwrap_or_default();
        T::read(text).map(Self).map_err(|wrong| Error::invalid_field(T::NAME, wrong))
    }
}

/// Ids by their names in routes.
macro_rules! id_params {
    ($($id:ident $name:literal),* $(,)?) => {
        $(impl PathParam for ids::$id {
            const NAME: &'static str = $name;

            fn read(text: &str) -> Result<Self, &'static str> {
                text.parse()
            }
        })*
    };
}

id_params!(
    DiskId "disk_id",
    MessageId "message_id",
    ProjectId "project_id",
    SessionId "session_id",
    SkillId "skill_id",
    SpaceId "space_id",
);

/// An integer from a query, a form or JSON. Present but empty counts as not given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Int(Option<i64>);

impl Int {
    pub fn given(self) -> Option<i64> {
        self.0
    }
}

impl<'de> Deserialize<'de> for Int {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let wrong = || D::Error::custom("must be a whole number");
        match Value::deserialize(input)? {
            Value::Null => Ok(Self(None)),
            Value::String(text) if text.trim().is_empty() => Ok(Self(None)),
            Value::String(text) => text.trim().parse().map(|n| Self(Some(n))).map_err(|_| wrong()),
            Value::Number(number) => number.as_i64().map(|n| Self(Some(n))).ok_or_else(wrong),
            _ => Err(wrong()),
        }
    }
}

/// A yes or no from a query, a form or JSON. Present but empty counts as not given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flag(Option<bool>);

impl Flag {
    pub fn is_set(self) -> bool {
        self.0 == Some(true)
    }

    pub fn or(flag: Option<Self>, default: bool) -> bool {
        flag.and_then(|flag| flag.0).unwrap_or(default)
    }
}

impl<'de> Deserialize<'de> for Flag {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        match Value::deserialize(input)? {
            Value::Bool(flag) => Ok(Self(Some(flag))),
            Value::Null => Ok(Self(None)),
            Value::String(text) => match text.trim() {
                "" => Ok(Self(None)),
                "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Self(Some(true))),
                "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Self(Some(false))),
                _ => Err(D::Error::custom("must be true or false")),
            },
            _ => Err(D::Error::custom("must be true or false")),
        }
    }
}

/// The first JSON value of a body, which must be an object or `null`; what follows it is ignored.
pub fn first_object(bytes: &[u8]) -> Result<Map<String, Value>> {
    let wrong =
        |why: &dyn std::fmt::Display| Error::bad_request_with_reason("parameter error", format_args!("body: {why}"));
    if bytes.is_empty() {
        return Err(wrong(&"is empty, a JSON object is due"));
    }
    match json::parse_first(bytes) {
        Ok(Value::Null) => Ok(Map::new()),
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(wrong(&"must be a JSON object")),
        Err(err) => Err(wrong(&format_args!("is not valid JSON ({err})"))),
    }
}

fn bind<T: DeserializeOwned>(fields: Value) -> Result<T> {
    serde_path_to_error::deserialize(fields).map_err(|err| {
        let path = err.path().to_string();
        let wrong = err.into_inner();
        match path.as_str() {
            "." | "?" | "" => Error::bad_request_with_reason("parameter error", wrong),
            field => Error::invalid_field(field, wrong),
        }
    })
}

fn query_pairs(parts: &Parts) -> Result<Map<String, Value>> {
    pairs(parts.uri.query().unwrap_or_default().as_bytes())
}

/// How many parameters a query or a form may have.
const MAX_PAIRS: usize = 1_000;

/// `a=1&b=2` as an object of strings; the first of equal keys counts.
fn pairs(encoded: &[u8]) -> Result<Map<String, Value>> {
    let mut fields = Map::new();
    if memchr_iter(b'&', encoded).count() >= MAX_PAIRS {
        return Err(Error::bad_request_with_reason(
            "parameter error",
            format_args!("must not have more than {MAX_PAIRS} parameters"),
        ));
    }
    for pair in encoded.split(|byte| *byte == b'&').filter(|pair| !pair.is_empty()) {
        let at = pair.iter().position(|byte| *byte == b'=');
        let (name, value) = at.map_or((pair, &[][..]), |at| (&pair[..at], &pair[at + 1..]));
        let name =
            decode(name).ok_or_else(|| Error::invalid_field("query", "a name is not valid UTF-8 or badly escaped"))?;
        let value = decode(value).ok_or_else(|| Error::invalid_field(&name, "is not valid UTF-8 or badly escaped"))?;
        fields.entry(name).or_insert(Value::String(value));
    }
    Ok(fields)
}

/// Undoes form encoding (`+` and `%XX`).
fn decode(text: &[u8]) -> Option<String> {
    let spaced: Vec<u8> = text.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect();
    percent::decode(&spaced)
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    struct Sample {
        name: Option<String>,
        limit: Option<Int>,
        deep: Option<Flag>,
    }

    fn query(text: &str) -> Result<Sample> {
        bind(Value::Object(pairs(text.as_bytes())?))
    }

    fn refusal(text: &str) -> String {
        match query(text) {
            Err(Error::BadRequest { detail, .. }) => detail.unwrap_or_default(),
            other => panic!("{text} gave {other:?}"),
        }
    }

    #[test]
    fn a_query_is_bound_by_the_clients_rules() {
        let sample = query("name=a+b%2Fc&limit=%2020%20&deep=T&name=second").unwrap();
        assert_eq!(sample.name.as_deref(), Some("a b/c"));
        assert_eq!(sample.limit, Some(Int(Some(20))));
        assert_eq!(sample.deep, Some(Flag(Some(true))));
        let empty = query("limit=&deep=").unwrap();
        assert_eq!((empty.limit, empty.deep), (Some(Int(None)), Some(Flag(None))));
    }

    #[test]
    fn a_refusal_names_the_field() {
        assert!(refusal("limit=abc").starts_with("limit: "));
        assert!(refusal("deep=maybe").starts_with("deep: "));
        assert!(refusal("name=%zz").starts_with("name: "));
        assert!(refusal("name=%ff").starts_with("name: "));
        assert!(refusal("name=%e").starts_with("name: "));
    }

    #[test]
    fn json_values_are_taken_in_their_own_types() {
        let sample: Sample = bind(json!({"limit": 7, "deep": true, "name": null})).unwrap();
        assert_eq!(sample, Sample { name: None, limit: Some(Int(Some(7))), deep: Some(Flag(Some(true))) });
        assert!(bind::<Sample>(json!({"name": 7})).is_err());
        assert!(bind::<Sample>(json!({"limit": 1.5})).is_err());
        assert!(bind::<Sample>(json!(["a"])).is_err());
    }

    #[test]
    fn only_the_first_json_value_counts_and_depth_is_bounded() {
        assert_eq!(json!(first_object(br#"{"a":1} trailing"#).unwrap()), json!({"a": 1}));
        assert_eq!(json!(first_object(b"null").unwrap()), json!({}));
        for body in [&b""[..], b"[]", b"7", b"{\"user\": ", "[".repeat(10_000).as_bytes()] {
            assert!(first_object(body).is_err());
        }
    }
}
