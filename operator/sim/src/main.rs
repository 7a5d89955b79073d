//! Plays every world, or those about which these words are said, and tells of those that go wrong.

use std::fs;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::Instant;

use ebbtide_operator_sim::lives::{all, come_and_go, play, play_all};
use ebbtide_operator_sim::world::Conditions;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(wrong) => {
            // There is nowhere else to tell it.
            let _: io::Result<()> = writeln!(io::stderr(), "{wrong}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let expected = play(&Conditions::quiet())?;
    let (mut count, begin) = (0, Instant::now());
    let words: Vec<String> = std::env::args().skip(1).collect();
    let is_meant = |about: &str| words.is_empty() || words.iter().any(|it| about.contains(it));
    for (about, worlds) in all()?.into_iter().filter(|(about, _)| is_meant(about)) {
        play_all(&worlds, &expected).map_err(|wrong| format!("with {about}, {wrong}"))?;
        count += worlds.len();
        let seconds = begin.elapsed().as_secs();
        let line = format!("{seconds:>4} s {count:>6} worlds, with {about}");
        writeln!(io::stdout(), "{line}").map_err(|error| error.to_string())?;
    }
    if is_meant(COME_AND_GO) { comes_and_goes(begin) } else { Ok(()) }
}

/// What is said of clusters that come and go.
const COME_AND_GO: &str = "clusters that come and go";

/// How many of them there are.
const TIMES: usize = 10_000;

/// How many of them have come and gone when everything has the size that it keeps.
const SETTLED: usize = 2_000;

/// By how many bytes the program may grow meanwhile: 128 for each of the rest.
const GROWTH_MAX: u64 = 1 << 20;

/// Has clusters come and go, and looks at whether memory does.
fn comes_and_goes(begin: Instant) -> Result<(), String> {
    let mut settled = 0;
    come_and_go(TIMES, |nth| {
        if nth == SETTLED {
            settled = resident_bytes();
        }
    })?;
    let grown = resident_bytes().saturating_sub(settled);
    let seconds = begin.elapsed().as_secs();
    let line = format!("{seconds:>4} s {TIMES:>6} {COME_AND_GO}: memory grew by {grown} bytes");
    writeln!(io::stdout(), "{line}").map_err(|error| error.to_string())?;
    if settled > 0 && grown <= GROWTH_MAX { Ok(()) } else { Err(line) }
}

/// The memory of this program, as the kernel counts it.
fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|it| it.strip_prefix("VmRSS:"));
    let kibibytes = line.and_then(|it| it.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kibibytes.unwrap_or_default() << 10
}
