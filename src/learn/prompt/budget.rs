//! The distribution of a prompt's tokens to the texts in it.

use crate::conversation::tokens;

/// A part of a prompt that can be shortened.
pub trait Shrink {
    /// Returns the part as it appears in the prompt, without a line break at the end.
    fn render(&self) -> String;

    /// Returns the number of tokens of the part without any data.
    fn min_tokens(&self) -> usize;

    /// Shortens the part to about `max_tokens`, but not below [`min_tokens`](Self::min_tokens).
    fn shrink(&mut self, max_tokens: usize);

    /// Returns the number of tokens of the part and the line break after it.
    fn tokens(&self) -> usize {
        tokens::count_text(&self.render()) + 1
    }
}

/// The end of a list at which entries are omitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OmitFrom {
    Start,
    End,
}

/// The number of tokens of the line that replaces omitted entries.
pub const OMISSION_TOKENS: usize = 10;

/// The tokens that an entry needs in addition to the empty one, so that it contains anything.
const MIN_TEXT_TOKENS: usize = 8;

/// Renders a list as lines with together at most `max_tokens`. If it is too long, its longest entries are shortened to the same
/// number of tokens. If the entries would become empty by that, some are removed, and a line names their number.
pub fn render_list<T: Shrink>(entries: &mut Vec<T>, max_tokens: usize, omit_from: OmitFrom) -> String {
    let mut needs: Vec<usize> = entries.iter().map(Shrink::tokens).collect();
    let mut omitted = 0;
    if needs.iter().sum::<usize>() > max_tokens {
        omitted = omit_entries(entries, &mut needs, max_tokens, omit_from);
        let shares = share(max_tokens.saturating_sub(if omitted > 0 { OMISSION_TOKENS } else { 0 }), &needs);
        for ((entry, share), need) in entries.iter_mut().zip(shares).zip(needs) {
            if share < need {
                entry.shrink(share);
            }
        }
    }
    let mut lines: Vec<String> = entries.iter().map(Shrink::render).collect();
    if omitted > 0 {
        lines.insert(if omit_from == OmitFrom::Start { 0 } else { lines.len() }, omission(omitted));
    }
    lines.join("\n")
}

/// Removes entries, and their needs, until the smallest possible forms of the other ones, and the line that replaces the removed
/// ones, have together at most `max_tokens`. Returns the number of removed entries.
fn omit_entries<T: Shrink>(
    entries: &mut Vec<T>,
    needs: &mut Vec<usize>,
    max_tokens: usize,
    omit_from: OmitFrom,
) -> usize {
    let smallest = entries.iter().zip(&*needs).map(|(entry, need)| (entry.min_tokens() + MIN_TEXT_TOKENS).min(*need));
    let smallest: Vec<usize> = smallest.collect();
    let (mut sum, mut omitted): (usize, usize) = (smallest.iter().sum(), 0);
    if sum <= max_tokens {
        return 0;
    }
    while sum + OMISSION_TOKENS > max_tokens && omitted < smallest.len() {
        sum -= smallest[if omit_from == OmitFrom::Start { omitted } else { smallest.len() - 1 - omitted }];
        omitted += 1;
    }
    let removed = match omit_from {
        OmitFrom::Start => 0..omitted,
        OmitFrom::End => smallest.len() - omitted..smallest.len(),
    };
    entries.drain(removed.clone());
    needs.drain(removed);
    omitted
}

/// Returns the line that replaces omitted entries.
pub fn omission(count: usize) -> String {
    format!("<omitted count=\"{count}\"/>")
}

/// Distributes `total` to entries with these needs. An entry gets no more than it needs. All entries whose need is not met get
/// the same, which is at least as much as any other entry gets; the remainder of the division goes to the last of them.
pub fn share(total: usize, needs: &[usize]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..needs.len()).collect();
    order.sort_by_key(|index| needs[*index]);
    let (mut left, mut shares) = (total, vec![0; needs.len()]);
    for (position, index) in order.into_iter().enumerate() {
        shares[index] = needs[index].min(left / (needs.len() - position));
        left -= shares[index];
    }
    shares
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::learn::prompt::element::Element;

    #[test]
    fn small_needs_are_met_before_large_ones() {
        assert_eq!(share(100, &[10, 500, 20, 400]), [10, 35, 20, 35]);
        assert_eq!(share(100, &[10, 20]), [10, 20]);
        assert_eq!(share(0, &[1, 0]), [0, 0]);
        assert!(share(5, &[]).is_empty());
    }

    #[test]
    fn the_longest_entries_are_shortened() {
        let element = |text: &str| Element::new("note", "", text, 10_000);
        let long = "many words ".repeat(500);
        let render = |texts: &[&str], max_tokens, omit_from| {
            render_list(&mut texts.iter().map(|text| element(text)).collect(), max_tokens, omit_from)
        };
        let lines = render(&["short", &long, &long], 200, OmitFrom::Start);
        let lines: Vec<_> = lines.lines().collect();
        assert_eq!(lines[0], "<note>short</note>");
        assert!(lines[1].ends_with("<cut/></note>") && lines[1] == lines[2] && lines[1].len() > 300, "{lines:?}");
        assert!(tokens::count_text(&lines.join("\n")) <= 200);

        let texts: Vec<String> = (0..100).map(|n| format!("{n} {long}")).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        for (omit_from, line, kept) in [(OmitFrom::Start, 0, "<note>99 many"), (OmitFrom::End, -1, "<note>0 many")] {
            let list = render(&texts, 300, omit_from);
            assert!(tokens::count_text(&list) <= 300, "{list}");
            let lines: Vec<_> = list.lines().collect();
            let omission = if line == 0 { lines[0] } else { lines[lines.len() - 1] };
            let omitted = format!("<omitted count=\"{}\"/>", 101 - lines.len());
            assert_eq!(omission, omitted);
            assert!(lines.len() > 10 && list.contains(kept), "{list}");
        }
        assert_eq!(render(&["one", "two"], 0, OmitFrom::End), "<omitted count=\"2\"/>");
    }

    proptest! {
        #[test]
        fn shares_are_fair(total in 0_usize..2000, needs in prop::collection::vec(0_usize..500, 0..12)) {
            let shares = share(total, &needs);
            let sum: usize = shares.iter().sum();
            prop_assert!(sum <= total);
            prop_assert_eq!(sum, total.min(needs.iter().sum()));
            let largest = shares.iter().max().copied().unwrap_or_default();
            for (share, need) in shares.iter().zip(&needs) {
                prop_assert!(share <= need);
                prop_assert!(share == need || share + needs.len() >= largest, "{:?} {:?}", shares, needs);
            }
        }
    }
}
