//! The calls that precede a history.

use std::collections::HashMap;
use std::sync::Arc;

use super::call_ids::all_ids;

/// The tool calls of the messages before the first message of a history.
#[derive(Clone, Debug, Default)]
pub struct EarlierCalls {
    /// The calls by each id that a client may use for them. If several calls have the same id, this is the last one.
    calls: HashMap<Arc<str>, Arc<EarlierCall>>,
    text_bytes: usize,
}

/// A call as it is stored.
#[derive(Debug, PartialEq, Eq)]
pub struct EarlierCall {
    pub id: String,
    pub name: String,
}

impl EarlierCalls {
    /// Adds a call, which must follow all calls added before it.
    pub fn add(&mut self, id: String, name: String) {
        let call = Arc::new(EarlierCall { id, name });
        for id in all_ids(&call.id) {
            self.text_bytes += id.len() + call.name.len();
            self.calls.insert(id.into(), Arc::clone(&call));
        }
    }

    /// Returns the last call that has the given id, possibly in another format.
    pub fn find(&self, id: &str) -> Option<&EarlierCall> {
        self.calls.get(id).map(AsRef::as_ref)
    }

    /// Returns the approximate memory that the calls need, in bytes.
    pub fn memory_bytes(&self) -> usize {
        // The pointers and lengths of a call and its entry, and the headers of both allocations.
        const CALL_BYTES: usize = 128;
        self.text_bytes + self.calls.len() * CALL_BYTES
    }
}

impl<'a> FromIterator<(&'a str, &'a str)> for EarlierCalls {
    /// Collects the ids and function names of calls, in their order.
    fn from_iter<I: IntoIterator<Item = (&'a str, &'a str)>>(calls: I) -> Self {
        let mut earlier = Self::default();
        for (id, name) in calls {
            earlier.add(id.into(), name.into());
        }
        earlier
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_found_by_each_of_its_ids() {
        let calls: EarlierCalls = [("look:0", "look"), ("a", "first"), ("a", "second")].into_iter().collect();
        let ids: Vec<_> = all_ids("look:0").collect();
        assert!(ids.len() > 1, "{ids:?}");
        for id in ids {
            assert_eq!(calls.find(&id).map(|call| call.id.as_str()), Some("look:0"));
        }
        assert_eq!(calls.find("a").map(|call| call.name.as_str()), Some("second"));
        assert_eq!(calls.find("b"), None);
    }
}
