//! Streamed function calls. A chunk of a call contains values of arguments with their paths in `partialArgs`.

use std::collections::HashSet;

use serde_json::Value;

use super::super::value::{Object, object, str_at};
use super::is_partial_call;

/// The maximum number of keys and indices in the path of an argument, so that arguments are not nested without bound.
const MAX_PATH_LENGTH: usize = 64;

/// A matcher for the function calls of a message, in their order, that tells the chunks of a call from other calls.
#[derive(Default)]
pub(super) struct ChunkMatcher {
    /// Set if a chunk of the last call may follow.
    is_open: bool,
}

impl ChunkMatcher {
    /// Returns `true` if the next function call is a chunk of the last one that is not a chunk.
    pub(super) fn matches_next(&mut self, call: &Object) -> bool {
        let is_chunk = is_partial_call(call);
        let matches = is_chunk && self.is_open;
        self.is_open = (matches || !is_chunk) && call.get("willContinue") == Some(&Value::Bool(true));
        matches
    }
}

/// Adds the chunks of each call to the `partialArgs` of the call, and removes the parts that contained nothing else.
pub(super) fn join_chunks(parts: Vec<Value>) -> Vec<Value> {
    let mut joined: Vec<Value> = Vec::with_capacity(parts.len());
    let mut chunks = ChunkMatcher::default();
    let mut call_index = 0;
    for mut part in parts {
        if let Some(Value::Object(call)) = part.get_mut("functionCall") {
            if chunks.matches_next(call) {
                let more = take_partial_args(call);
                if let Some(Value::Object(call)) = joined[call_index].get_mut("functionCall") {
                    let mut all = take_partial_args(call);
                    all.extend(more);
                    call.insert("partialArgs".into(), Value::Array(all));
                }
                let fields = part.as_object_mut();
                if fields.is_some_and(|fields| fields.remove("functionCall").is_some() && fields.is_empty()) {
                    continue;
                }
            } else {
                call_index = joined.len();
            }
        }
        joined.push(part);
    }
    joined
}

/// Removes and returns the values of a call or chunk.
fn take_partial_args(call: &mut Object) -> Vec<Value> {
    match call.remove("partialArgs") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(list)) => list,
        Some(other) => vec![other],
    }
}

/// Removes and returns the arguments of a call: its `args`, with the values in `partialArgs`. If one of these has a path that is
/// not supported, the arguments contain the list itself at the key `partialArgs`.
pub(super) fn take_call_arguments(call: &mut Object) -> Value {
    let args = call.remove("args").unwrap_or_default();
    let values = take_partial_args(call);
    if values.is_empty() {
        return args;
    }
    let mut args = match args {
        Value::Object(args) => args,
        Value::Null => Object::new(),
        other => object([("args", other)]),
    };
    let mut joined = Value::Object(args.clone());
    let mut open_paths = HashSet::new();
    if values.iter().all(|value| add_value(&mut joined, value, &mut open_paths).is_some()) {
        return joined;
    }
    args.insert("partialArgs".into(), Value::Array(values));
    Value::Object(args)
}

/// Sets the value of an argument, or appends a text to it if its path is in `open_paths`. These are the paths whose texts will
/// continue. Returns `None` if the path is not supported.
fn add_value<'a>(args: &mut Value, value: &'a Value, open_paths: &mut HashSet<&'a str>) -> Option<()> {
    let value = value.as_object()?;
    let path = str_at(value, "jsonPath");
    let target = value_at(args, path)?;
    // An empty text may have been left out.
    let text = value.get("stringValue").and_then(Value::as_str).unwrap_or_default();
    let other = ["numberValue", "boolValue"].into_iter().find_map(|key| value.get(key));
    match target {
        _ if value.contains_key("nullValue") => *target = Value::Null,
        _ if other.is_some() => *target = other.cloned().unwrap_or_default(),
        Value::String(start) if open_paths.contains(path) => start.push_str(text),
        _ => *target = text.into(),
    }
    if value.get("willContinue") == Some(&Value::Bool(true)) {
        open_paths.insert(path);
    } else {
        open_paths.remove(path);
    }
    Some(())
}

/// Returns the value at a JSON path (RFC 9535) such as `$.a.b[0]` or `$['a']`, after adding the objects and lists on the way.
/// Returns `None` for a path with anything but keys and indices, for an index beyond the end of a list, and for a path that is
/// too long or leads through a value of another type.
fn value_at<'a>(mut value: &'a mut Value, path: &str) -> Option<&'a mut Value> {
    let mut rest = path.strip_prefix('$').filter(|rest| !rest.is_empty())?;
    for _ in 0..MAX_PATH_LENGTH {
        if rest.is_empty() {
            return Some(value);
        }
        value = if let Some(name) = rest.strip_prefix('.') {
            let (key, after) = name.split_at(name.find(['.', '[']).unwrap_or(name.len()));
            rest = after;
            value_at_key(value, key)?
        } else {
            let (selector, after) = rest.strip_prefix('[')?.split_once(']')?;
            rest = after;
            match selector.parse() {
                Ok(index) => value_at_index(value, index)?,
                Err(_) => value_at_key(value, unquote(selector)?)?,
            }
        };
    }
    None
}

/// Returns the text between two single or double quotes.
fn unquote(selector: &str) -> Option<&str> {
    ['\'', '"'].into_iter().find_map(|quote| selector.strip_prefix(quote)?.strip_suffix(quote))
}

fn value_at_key<'a>(value: &'a mut Value, key: &str) -> Option<&'a mut Value> {
    if key.is_empty() || key.contains(['*', '\\', '\'', '"']) {
        return None;
    }
    if value.is_null() {
        *value = Value::Object(Object::new());
    }
    Some(value.as_object_mut()?.entry(key).or_insert(Value::Null))
}

fn value_at_index(value: &mut Value, index: usize) -> Option<&mut Value> {
    if value.is_null() {
        *value = Value::Array(Vec::new());
    }
    let list = value.as_array_mut()?;
    if index == list.len() {
        list.push(Value::Null);
    }
    list.get_mut(index)
}
