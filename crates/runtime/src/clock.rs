//! The wall clock.

use std::time::{SystemTime, UNIX_EPOCH};

/// Returns the Unix time in seconds. It is 0 if the clock is set before 1970: a wrong clock is no
/// reason to refuse an answer.
pub fn unix_time() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
    since_epoch.map_or(0, |time| time.as_secs())
}
