//! Values that many records share.

use std::{borrow::Borrow, collections::HashSet, hash::Hash, sync::Arc};

/// Equal values once.
#[derive(Debug)]
pub(crate) struct Interner<T: ?Sized>(HashSet<Arc<T>>);

impl<T: ?Sized> Clone for Interner<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: ?Sized> Default for Interner<T> {
    fn default() -> Self {
        Self(HashSet::new())
    }
}

impl<T: ?Sized + Eq + Hash> Interner<T> {
    /// The one that is equal to `value`.
    pub(crate) fn intern(&mut self, value: impl Borrow<T> + Into<Arc<T>>) -> Arc<T> {
        if let Some(known) = self.0.get(value.borrow()) {
            return Arc::clone(known);
        }
        let value = value.into();
        self.0.insert(Arc::clone(&value));
        value
    }

    /// Forgets a value that somebody gives up, if nobody else shares it.
    pub(crate) fn release(&mut self, value: &Arc<T>) {
        // This one and the one in here.
        if Arc::strong_count(value) <= 2 && self.0.get(value).is_some_and(|known| Arc::ptr_eq(known, value)) {
            self.0.remove(value);
        }
    }

    /// Forgets what nobody shares any more.
    pub(crate) fn expire(&mut self) {
        self.0.retain(|value| Arc::strong_count(value) > 1);
    }

    /// How many different values are shared.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_one_as_long_as_somebody_has_them() {
        let mut texts = Interner::<str>::default();
        let (a, b) = (texts.intern("http"), texts.intern("http"));
        assert!(Arc::ptr_eq(&a, &b));
        texts.intern("unused");
        texts.expire();
        assert_eq!(texts.len(), 1);
        drop((a, b));
        texts.expire();
        assert_eq!(texts.len(), 0);
    }

    #[test]
    fn a_value_is_released_with_its_last_holder() {
        let mut numbers = Interner::<u32>::default();
        let (a, b) = (numbers.intern(7), numbers.intern(Arc::new(7)));
        assert!(Arc::ptr_eq(&a, &b));
        numbers.release(&a);
        assert_eq!(numbers.len(), 1, "another one has it");
        drop(a);
        numbers.release(&b);
        assert_eq!(numbers.len(), 0);
        let again = numbers.intern(7);
        numbers.release(&b);
        assert_eq!(numbers.len(), 1, "an equal one that came before is not the one in here");
        drop(again);
    }
}
