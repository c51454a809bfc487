//! Laws for the media of histories.

use proptest::prelude::*;
use serde_json::Value;

use super::model::{Item, PROVIDERS, any_format, turns};
use super::write::{IMAGE_URL, PDF, PNG};
use super::{Options, hold, messages, render};

/// Returns how often each content occurs.
fn count_media(items: &[Value]) -> [usize; 3] {
    let text: String = items.iter().map(Value::to_string).collect();
    [PNG, PDF, IMAGE_URL].map(|content| text.matches(content).count())
}

#[test]
fn equal_media_are_read_as_often_as_they_were_stored() {
    let inputs = turns(&any_format(), true).prop_map(|mut turns| {
        // Only some formats have the other kinds of media.
        for item in turns.iter_mut().flat_map(|turn| &mut turn.user) {
            if matches!(item, Item::Special(_)) {
                *item = Item::Image;
            }
        }
        turns
    });
    hold(&inputs.boxed(), |turns| {
        let history = super::write(turns).history;
        let stored = count_media(&messages(&history));
        for target in PROVIDERS {
            let items = render(&history, target, &Options::default());
            prop_assert_eq!(count_media(&items), stored, "{}", target.as_str());
        }
        Ok(())
    });
}
