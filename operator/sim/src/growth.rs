//! Clusters that come and go for a long time, and the memory of a program that has seen them all.

use std::fs;

use serde_json::json;

use crate::kinds;
use crate::lives::{cluster, within};
use crate::store::{Deletion, Store};
use crate::world::{Conditions, World};

/// What is said of clusters that come and go.
pub const COME_AND_GO: &str = "clusters that come and go";

/// How many of them there are.
const TIMES: usize = 10_000;

/// How many of them have come and gone when everything has the size that it keeps.
const SETTLED: usize = 2_000;

/// By how many bytes the program may grow meanwhile: 128 for each of the rest.
const GROWTH_MAX: u64 = 1 << 20;

/// Has clusters come and go, and tells by how much memory grew; or says so when it is more than it may.
pub fn comes_and_goes() -> Result<String, String> {
    let mut settled = 0;
    come_and_go(TIMES, |nth| {
        if nth == SETTLED {
            settled = resident_bytes();
        }
    })?;
    if settled == 0 {
        return Err("/proc/self/status does not tell how large a program is".to_owned());
    }
    let grown = resident_bytes().saturating_sub(settled);
    let told = format!("{TIMES:>6} {COME_AND_GO}: memory grew by {grown} bytes");
    if grown <= GROWTH_MAX { Ok(told) } else { Err(told) }
}

/// Has clusters come, get ready and go, so many times one after another, each under a name and in a namespace
/// of its own. Calls `seen` after each with its number, and tells what is left when that is anything.
pub fn come_and_go(times: usize, mut seen: impl FnMut(usize)) -> Result<(), String> {
    within(|| async move {
        let world = World::new(&Conditions::quiet());
        for nth in 0..times {
            let mut cluster = cluster("1Gi");
            let name = format!("risk-{nth}");
            cluster["metadata"] = json!({ "name": name, "namespace": format!("team-{nth}") });
            world.apply(&cluster);
            let is_ready = |store: &Store| {
                store.get(kinds::CLUSTER, &name).is_ok_and(|it| it["status"]["phase"] == "Ready")
            };
            world.until("it is ready", is_ready).await?;
            world.delete_a(kinds::CLUSTER, &name, &Deletion::default());
            let is_anything = |store: &Store| {
                let kinds = kinds::ALL.into_iter().filter(|it| *it != kinds::EVENT);
                kinds.flat_map(|it| store.list(it)).next().is_some()
            };
            world.until("nothing is left", |store| !is_anything(store)).await?;
            world.server.forget();
            seen(nth);
        }
        Ok(())
    })
}

/// The memory of this program, as the kernel counts it.
fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|it| it.strip_prefix("VmRSS:"));
    let kibibytes = line.and_then(|it| it.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kibibytes.unwrap_or_default() << 10
}
