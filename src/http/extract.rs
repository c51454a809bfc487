//! Extractors for handlers. Unlike axum's own, they return errors in the response envelope, name the invalid field, and parse
//! parameters by the rules that existing clients rely on:
//!
//! - [`Json`]: a JSON body with any content type. Only its first value is parsed; `null` is an empty object.
//! - [`Query`]: the query string. If a parameter is repeated, its first value is used.
//! - [`QueryAndBody`]: the query string and a JSON or form body, so that a client can send the parameters of a DELETE in either.
//!   A urlencoded body is ignored unless the method is POST, PUT or PATCH.
//! - [`JsonOrForm`]: a JSON or form body.
//! - [`Path`]: a parameter in the path.

use axum::extract::{FromRef, FromRequest, FromRequestParts, RawPathParams, Request};
use axum::http::Method;
use axum::http::request::Parts;
use bytes::Bytes;
use memchr::memchr_iter;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::body::{parse_body, read_body};
use super::context::RequestContext;
use super::request_headers::media_type;
use crate::config::Limits;
use crate::error::{Error, Result};
use crate::{ids, json, percent};

/// A type that is deserialized from a request body.
pub trait RequestBody: DeserializeOwned + Send + 'static {
    /// `true` if a field contains a free-form JSON object. Otherwise no valid body is longer than [`DEFAULT_MAX_BODY_BYTES`].
    const HAS_FREE_FORM_OBJECT: bool;

    /// Returns the maximum length of the body in bytes.
    fn max_bytes(limits: &Limits) -> u64 {
        // Leaves room for escape sequences in strings and for the other fields.
        if Self::HAS_FREE_FORM_OBJECT { limits.max_meta_bytes.saturating_mul(4) } else { DEFAULT_MAX_BODY_BYTES }
    }
}

/// The maximum length in bytes of a body without a free-form JSON object.
pub const DEFAULT_MAX_BODY_BYTES: u64 = 64 * 1024;

/// A JSON body.
pub struct Json<T>(pub T);

impl<T: RequestBody, S: Send + Sync> FromRequest<S> for Json<T>
where
    RequestContext: FromRef<S>,
{
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self> {
        let ctx = RequestContext::from_ref(state);
        let parse = |body: Bytes| deserialize_fields(Value::Object(parse_object(&body)?));
        parse_body(request, &ctx, T::max_bytes(&ctx.limits), parse).await.map(Self)
    }
}

/// The parameters of the query string.
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        deserialize_fields(Value::Object(parse_query(parts)?)).map(Self)
    }
}

/// The parameters of the query string and the body together. If both contain a parameter, the value in the body is used.
pub struct QueryAndBody<T>(pub T);

impl<T: RequestBody, S: Send + Sync> FromRequest<S> for QueryAndBody<T>
where
    RequestContext: FromRef<S>,
{
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self> {
        let ctx = RequestContext::from_ref(state);
        let (parts, body) = request.into_parts();
        let mut fields = parse_query(&parts)?;
        fields.extend(read_body_fields(Request::from_parts(parts, body), &ctx, T::max_bytes(&ctx.limits)).await?);
        deserialize_fields(Value::Object(fields)).map(Self)
    }
}

/// A JSON or form body. An empty form is valid, an empty JSON body is not.
pub struct JsonOrForm<T>(pub T);

impl<T: RequestBody, S: Send + Sync> FromRequest<S> for JsonOrForm<T>
where
    RequestContext: FromRef<S>,
{
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self> {
        if media_type(request.headers()) == "application/json" {
            return Json::from_request(request, state).await.map(|Json(fields)| Self(fields));
        }
        let ctx = RequestContext::from_ref(state);
        let fields = read_body_fields(request, &ctx, T::max_bytes(&ctx.limits)).await?;
        deserialize_fields(Value::Object(fields)).map(Self)
    }
}

/// Reads the fields of a JSON or form body. A body that is neither JSON nor multipart counts as a urlencoded form, which is read
/// only if the method is POST, PUT or PATCH.
async fn read_body_fields(request: Request, ctx: &RequestContext, limit: u64) -> Result<Map<String, Value>> {
    match media_type(request.headers()).as_str() {
        "multipart/form-data" => super::multipart::read_text_fields(request, ctx).await,
        "application/json" => {
            let parse = |body: Bytes| if body.is_empty() { Ok(Map::new()) } else { parse_object(&body) };
            parse_body(request, ctx, limit, parse).await
        }
        _ if matches!(*request.method(), Method::POST | Method::PUT | Method::PATCH) => {
            parse_urlencoded(&read_body(request, ctx, limit).await?)
        }
        _ => Ok(Map::new()),
    }
}

/// A parameter in the path, such as the id in `/disk/{disk_id}`. Unlike with axum's `Path`, [`PathParam::NAME`] selects the
/// parameter, so a handler extracts each parameter of its path separately.
pub struct Path<T>(pub T);

/// A type that is parsed from a parameter in the path.
pub trait PathParam: Sized {
    /// The name of the parameter in the route.
    const NAME: &'static str;

    /// Parses the decoded text of the parameter. The error is the reason why the text is invalid.
    fn parse(text: &str) -> Result<Self, &'static str>;
}

impl<T: PathParam, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self> {
        let params = RawPathParams::from_request_parts(parts, state)
            .await
            .map_err(|_| Error::invalid_field(T::NAME, "must be percent-encoded UTF-8"))?;
        let text = params.iter().find(|(name, _)| *name == T::NAME).map(|(_, text)| text).unwrap_or_default();
        T::parse(text).map(Self).map_err(|reason| Error::invalid_field(T::NAME, reason))
    }
}

/// Implements [`PathParam`] for types of ids. The parameter of each type has the same name in all routes.
macro_rules! id_params {
    ($($id:ident $name:literal),* $(,)?) => {
        $(impl PathParam for ids::$id {
            const NAME: &'static str = $name;

            fn parse(text: &str) -> Result<Self, &'static str> {
                text.parse()
            }
        })*
    };
}

id_params!(
    DiskId "disk_id",
    JobId "job_id",
    MessageId "message_id",
    ProjectId "project_id",
    SandboxId "sandbox_id",
    SessionId "session_id",
    SkillId "skill_id",
    LearningSpaceId "space_id",
);

/// An integer in a query, a form or JSON: a JSON number, or a string that contains one. An empty string and `null` count as
/// absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LenientInt(Option<i64>);

impl LenientInt {
    /// Returns the number, or `None` if the value is absent.
    pub fn get(self) -> Option<i64> {
        self.0
    }
}

impl<'de> Deserialize<'de> for LenientInt {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let invalid = || D::Error::custom("must be an integer");
        match Value::deserialize(input)? {
            Value::Null => Ok(Self(None)),
            Value::String(text) if text.trim().is_empty() => Ok(Self(None)),
            Value::String(text) => text.trim().parse().map(|n| Self(Some(n))).map_err(|_| invalid()),
            Value::Number(number) => number.as_i64().map(|n| Self(Some(n))).ok_or_else(invalid),
            _ => Err(invalid()),
        }
    }
}

/// A boolean in a query, a form or JSON: a JSON boolean, or a string such as `true` or `1`. An empty string and `null` count as
/// absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LenientBool(Option<bool>);

impl LenientBool {
    /// Returns `true` if the value is present and true.
    pub fn is_set(self) -> bool {
        self.0 == Some(true)
    }

    /// Returns the value, or `default` if it is absent.
    pub fn unwrap_or(flag: Option<Self>, default: bool) -> bool {
        flag.and_then(|flag| flag.0).unwrap_or(default)
    }
}

impl<'de> Deserialize<'de> for LenientBool {
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

/// Parses the first JSON value of a body and ignores the rest. The value must be an object or `null`, which counts as an empty
/// object.
///
/// # Errors
/// Returns 400 if the body is empty or does not begin with an object or `null`.
pub fn parse_object(bytes: &[u8]) -> Result<Map<String, Value>> {
    let invalid = |reason: &dyn std::fmt::Display| {
        Error::bad_request_with_reason("parameter error", format_args!("body: {reason}"))
    };
    if bytes.is_empty() {
        return Err(invalid(&"must not be empty; expected a JSON object"));
    }
    match json::parse_first(bytes) {
        Ok(Value::Null) => Ok(Map::new()),
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(invalid(&"must be a JSON object")),
        Err(err) => Err(invalid(&format_args!("is not valid JSON ({err})"))),
    }
}

/// Deserializes the fields of a request. An error names the invalid field.
fn deserialize_fields<T: DeserializeOwned>(fields: Value) -> Result<T> {
    serde_path_to_error::deserialize(fields).map_err(|err| {
        let path = err.path().to_string();
        let reason = err.into_inner();
        match path.as_str() {
            "." | "?" | "" => Error::bad_request_with_reason("parameter error", reason),
            field => Error::invalid_field(field, reason),
        }
    })
}

fn parse_query(parts: &Parts) -> Result<Map<String, Value>> {
    parse_urlencoded(parts.uri.query().unwrap_or_default().as_bytes())
}

/// The maximum number of parameters in a query or a form.
const MAX_PARAMS: usize = 1_000;

/// Parses `a=1&b=2` into an object whose values are strings. If a parameter is repeated, its first value is used.
fn parse_urlencoded(encoded: &[u8]) -> Result<Map<String, Value>> {
    let mut fields = Map::new();
    if memchr_iter(b'&', encoded).count() >= MAX_PARAMS {
        return Err(Error::bad_request_with_reason(
            "parameter error",
            format_args!("the query or form must not have more than {MAX_PARAMS} parameters"),
        ));
    }
    for pair in encoded.split(|byte| *byte == b'&').filter(|pair| !pair.is_empty()) {
        let separator = pair.iter().position(|byte| *byte == b'=');
        let (name, value) = separator.map_or((pair, &[][..]), |index| (&pair[..index], &pair[index + 1..]));
        let name = decode_form_text(name).ok_or_else(|| {
            let reason = "the name of each parameter must be percent-encoded UTF-8";
            Error::bad_request_with_reason("parameter error", reason)
        })?;
        let value =
            decode_form_text(value).ok_or_else(|| Error::invalid_field(&name, "must be percent-encoded UTF-8"))?;
        fields.entry(name).or_insert(Value::String(value));
    }
    Ok(fields)
}

/// Decodes a name or a value of a form, in which `+` is a space and `%XX` a byte. Returns `None` if the encoding is invalid.
fn decode_form_text(text: &[u8]) -> Option<String> {
    let with_spaces: Vec<u8> = text.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect();
    percent::decode(&with_spaces)
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    struct Sample {
        name: Option<String>,
        limit: Option<LenientInt>,
        deep: Option<LenientBool>,
    }

    fn query(text: &str) -> Result<Sample> {
        deserialize_fields(Value::Object(parse_urlencoded(text.as_bytes())?))
    }

    fn error_detail(text: &str) -> String {
        match query(text) {
            Err(Error::BadRequest { detail, .. }) => detail.unwrap_or_default(),
            other => panic!("{text} gave {other:?}"),
        }
    }

    #[test]
    fn queries_are_parsed_by_the_rules_of_clients() {
        let sample = query("name=a+b%2Fc&limit=%2020%20&deep=T&name=second").unwrap();
        assert_eq!(sample.name.as_deref(), Some("a b/c"));
        assert_eq!(sample.limit, Some(LenientInt(Some(20))));
        assert_eq!(sample.deep, Some(LenientBool(Some(true))));
        let empty = query("limit=&deep=").unwrap();
        assert_eq!((empty.limit, empty.deep), (Some(LenientInt(None)), Some(LenientBool(None))));
    }

    #[test]
    fn errors_name_the_field() {
        assert!(error_detail("limit=abc").starts_with("limit: "));
        assert!(error_detail("deep=maybe").starts_with("deep: "));
        assert!(error_detail("name=%zz").starts_with("name: "));
        assert!(error_detail("name=%ff").starts_with("name: "));
        assert!(error_detail("name=%e").starts_with("name: "));
    }

    #[test]
    fn json_values_keep_their_types() {
        let sample: Sample = deserialize_fields(json!({"limit": 7, "deep": true, "name": null})).unwrap();
        let expected = Sample { name: None, limit: Some(LenientInt(Some(7))), deep: Some(LenientBool(Some(true))) };
        assert_eq!(sample, expected);
        assert!(deserialize_fields::<Sample>(json!({"name": 7})).is_err());
        assert!(deserialize_fields::<Sample>(json!({"limit": 1.5})).is_err());
        assert!(deserialize_fields::<Sample>(json!(["a"])).is_err());
    }

    #[test]
    fn only_the_first_json_value_is_parsed_and_depth_is_limited() {
        assert_eq!(json!(parse_object(br#"{"a":1} trailing"#).unwrap()), json!({"a": 1}));
        assert_eq!(json!(parse_object(b"null").unwrap()), json!({}));
        for body in [&b""[..], b"[]", b"7", b"{\"user\": ", "[".repeat(10_000).as_bytes()] {
            assert!(parse_object(body).is_err());
        }
    }
}
