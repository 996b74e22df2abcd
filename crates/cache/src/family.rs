//! How keys are formed by the layers over one store, now and before.

use std::sync::Arc;

use parking_lot::RwLock;

use crate::rules::{CacheRules, Query};

/// So many forms that no layer has any more are remembered. Each costs a purge by URI and an unsafe request a look-up.
const RETIRED: usize = 16;

/// What rules make keys of, beside the request.
#[derive(Debug)]
pub(crate) struct Form {
    pub(crate) partition: Option<Arc<str>>,
    pub(crate) query: Query,
    pub(crate) sort_query: bool,
    /// Another one where the same form was forgotten meanwhile.
    pub(crate) generation: u64,
}

impl Form {
    pub(crate) fn new(rules: &CacheRules, generation: u64) -> Self {
        let CacheRules { partition, query, sort_query, .. } = rules;
        Self { partition: partition.clone(), query: query.clone(), sort_query: *sort_query, generation }
    }

    fn is_of(&self, rules: &CacheRules) -> bool {
        self.partition == rules.partition && self.query == rules.query && self.sort_query == rules.sort_query
    }
}

/// The forms of all layers over a store, since a URI is another key by each. Those that no layer has any more are kept for a while: rules may come back by a reload, and what
/// was purged or changed meanwhile must not come back with them.
#[derive(Debug, Default)]
pub(crate) struct Family {
    forms: RwLock<Forms>,
}

#[derive(Debug, Default)]
struct Forms {
    /// The last to be asked for is the last.
    known: Vec<Arc<Form>>,
    /// Of the next that is not known.
    generation: u64,
}

impl Family {
    /// The form of these rules, for a layer to keep for as long as it uses it.
    pub(crate) fn form(&self, rules: &CacheRules) -> Arc<Form> {
        let mut forms = self.forms.write();
        let forms = &mut *forms;
        let known = forms.known.iter().position(|form| form.is_of(rules));
        let form = match known {
            Some(at) => forms.known.remove(at),
            None => Arc::new(Form::new(rules, forms.generation)),
        };
        forms.known.push(Arc::clone(&form));
        let is_retired = |form: &Arc<Form>| Arc::strong_count(form) == 1;
        let mut too_many = forms.known.iter().filter(|form| is_retired(form)).count().saturating_sub(RETIRED);
        if too_many > 0 {
            // No purge finds what is stored by these any more: who comes with the same rules has other keys.
            forms.generation += 1;
            forms.known.retain(|form| {
                let goes = too_many > 0 && is_retired(form);
                too_many -= usize::from(goes);
                !goes
            });
        }
        form
    }

    /// All.
    pub(crate) fn forms(&self) -> Vec<Arc<Form>> {
        self.forms.read().known.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(family: &Family, partition: usize) -> Arc<Form> {
        family.form(&CacheRules::default().with_partition(Some(partition.to_string().into())))
    }

    #[test]
    fn what_is_forgotten_comes_back_as_another() {
        let family = Family::default();
        let live = of(&family, 0);
        for n in 1..=RETIRED {
            assert_eq!(of(&family, n).generation, 0);
        }
        assert_eq!(of(&family, 1).generation, 0, "it is known");
        // One more than is remembered: the oldest goes, which is not the one that was asked for again, nor one in use.
        let more = [of(&family, RETIRED + 1), of(&family, RETIRED + 2)];
        drop(more);
        let last = of(&family, RETIRED + 3);
        assert_eq!(family.forms().len(), RETIRED + 2);
        assert_eq!((last.generation, of(&family, 1).generation, of(&family, 0).generation), (0, 0, 0));
        assert_eq!(of(&family, 2).generation, 1, "it was forgotten");
        drop((live, last));
    }
}
