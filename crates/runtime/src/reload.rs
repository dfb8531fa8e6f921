//! Reloads profiles while they are served.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use super::{BoundProfile, LoadError, Profiles, Runtime};
use incant_prompt::profile::{Library, Profile};

impl Runtime {
    /// Replaces the served profiles by those of `library`. Running requests keep the version that
    /// they began with.
    ///
    /// An invalid file leaves in place the profile that was served under its name. So does a
    /// profile that any model cannot use, and the removal of one that a model chats with by
    /// default. [`Runtime::profiles`] and the log give the reasons.
    pub fn update_profiles(&self, library: &Library) {
        let broken = library.broken();
        let mut problems: BTreeMap<String, String> = broken
            .map(|(name, error)| (name, error.for_clients()))
            .collect();
        let mut found = library.profiles();
        found.retain(|name, _| !problems.contains_key(name));
        for model in self.models() {
            if let Some(name) = model
                .default_profile()
                .filter(|&name| !found.contains_key(name))
            {
                let problem =
                    || format!("its file is gone, but it is the default of {}", model.id());
                problems.entry(name.to_owned()).or_insert_with(problem);
            }
        }

        // The next profiles of each model, in the models' order.
        let mut next: Vec<Profiles> = vec![Profiles::new(); self.models().len()];
        for (name, profile) in &found {
            match self.bind(profile) {
                Ok(bound) => {
                    for (profiles, bound) in next.iter_mut().zip(bound) {
                        profiles.insert(name.clone(), bound);
                    }
                }
                Err(error) => _ = problems.insert(name.clone(), error.for_clients()),
            }
        }
        let before: Vec<Arc<Profiles>> = self.models().iter().map(|it| it.profiles()).collect();
        for (served, profiles) in before.iter().zip(&mut next) {
            let kept = problems
                .keys()
                .filter_map(|name| served.get_key_value(name));
            profiles.extend(kept.map(|(name, bound)| (name.clone(), bound.clone())));
        }
        let known = {
            // Under this lock, a reader of [`Runtime::profiles`] sees either the old or the new
            // state.
            let problems_now = self.problems.write();
            let mut problems_now = problems_now.unwrap_or_else(PoisonError::into_inner);
            for (model, profiles) in self.models().iter().zip(next) {
                model.replace_profiles(profiles);
            }
            std::mem::replace(&mut *problems_now, problems.clone())
        };

        for (model, before) in self.models().iter().zip(before) {
            log_changes(model.id(), &before, &model.profiles());
        }
        for (profile, problem) in &problems {
            if known.get(profile) != Some(problem) {
                tracing::warn!(profile, "a profile stays as it was: {problem}");
            }
        }
    }

    /// Binds a profile to each model. A profile that is served already stays the same.
    fn bind(&self, profile: &Arc<Profile>) -> Result<Vec<BoundProfile>, LoadError> {
        let models = self.models().iter();
        models
            .map(|model| match model.profiles().get(profile.name()) {
                Some(bound) if Arc::ptr_eq(bound.profile(), profile) => Ok(bound.clone()),
                _ => BoundProfile::new(model.id(), profile, model.tokenizer()),
            })
            .collect()
    }
}

/// Logs the changes.
fn log_changes(model: &str, before: &Profiles, after: &Profiles) {
    for (profile, bound) in after {
        match before.get(profile) {
            None => tracing::info!(model, profile, "a profile was added"),
            Some(old) if !Arc::ptr_eq(old.profile(), bound.profile()) => {
                tracing::info!(model, profile, "a profile was changed");
            }
            Some(_) => {}
        }
    }
    for profile in before.keys().filter(|&name| !after.contains_key(name)) {
        tracing::info!(model, profile, "a profile was removed");
    }
}
