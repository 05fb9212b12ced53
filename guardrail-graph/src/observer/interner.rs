//! Short texts that many records share.

use std::{collections::HashSet, sync::Arc};

/// Each text once: names of Services, ports and nodes.
#[derive(Debug, Default)]
pub(super) struct Interner(HashSet<Arc<str>>);

impl Interner {
    /// The one that is equal to `text`.
    pub(super) fn intern(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.0.get(text) {
            return Arc::clone(known);
        }
        let text: Arc<str> = text.into();
        self.0.insert(Arc::clone(&text));
        text
    }

    /// Forgets what nobody shares any more.
    pub(super) fn expire(&mut self) {
        self.0.retain(|text| Arc::strong_count(text) > 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_are_one_as_long_as_somebody_has_it() {
        let mut texts = Interner::default();
        let (a, b) = (texts.intern("http"), texts.intern("http"));
        assert!(Arc::ptr_eq(&a, &b));
        texts.intern("unused");
        texts.expire();
        assert_eq!(texts.0.len(), 1);
        drop((a, b));
        texts.expire();
        assert!(texts.0.is_empty());
    }
}
