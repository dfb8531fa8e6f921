//! The memory of this machine.

use std::fs;

use serde::Serialize;

/// The machine's memory in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Memory {
    /// The memory that this process may use: the machine's, or its container's limit.
    pub(super) total: u64,
    /// The memory that can be allocated now without swapping.
    pub(super) available: Option<u64>,
}

impl Memory {
    /// Reads the system's information; `None` on unsupported systems.
    pub(super) fn read() -> Option<Memory> {
        match std::env::consts::OS {
            "linux" => {
                let info = fs::read_to_string("/proc/meminfo").ok()?;
                // Version 2 of cgroups, then version 1.
                let limit = [
                    "/sys/fs/cgroup/memory.max",
                    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
                ]
                .iter()
                .find_map(|path| fs::read_to_string(path).ok()?.trim().parse().ok());
                linux(&info, limit)
            }
            "macos" => {
                let output = std::process::Command::new("sysctl")
                    .args(["-n", "hw.memsize"])
                    .output()
                    .ok()?;
                let total = String::from_utf8(output.stdout).ok()?;
                Some(Memory {
                    total: total.trim().parse().ok()?,
                    available: None,
                })
            }
            _ => None,
        }
    }
}

/// Parses `/proc/meminfo`; `limit` is the container's, in bytes.
fn linux(info: &str, limit: Option<u64>) -> Option<Memory> {
    let field = |name: &str| {
        let line = info.lines().find_map(|line| line.strip_prefix(name))?;
        let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        kibibytes.checked_mul(1024)
    };
    let total = field("MemTotal:")?;
    let limit = limit.unwrap_or(u64::MAX);
    Some(Memory {
        total: total.min(limit),
        available: field("MemAvailable:").map(|available| available.min(limit)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str =
        "MemTotal:       24000000 kB\nMemFree:         1 kB\nMemAvailable:   20000000 kB\n";

    #[test]
    fn the_smaller_of_machine_and_container_counts() {
        let memory = |total, available| {
            Some(Memory {
                total,
                available: Some(available),
            })
        };
        let machine = memory(24_000_000 * 1024, 20_000_000 * 1024);
        assert_eq!(linux(INFO, None), machine);
        assert_eq!(linux(INFO, Some(u64::MAX / 2)), machine);
        assert_eq!(linux(INFO, Some(1 << 30)), memory(1 << 30, 1 << 30));
        assert_eq!(linux("nothing", None), None);
    }
}
