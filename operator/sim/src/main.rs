//! Plays every world, or those about which these words are said, and tells of those that go wrong.

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::Instant;

use ebbtide_operator_sim::growth::{COME_AND_GO, comes_and_goes};
use ebbtide_operator_sim::lives::{all, play, play_all};
use ebbtide_operator_sim::world::Conditions;

/// That there are so many is promised.
const WORLDS_MIN: usize = 20_000;

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
    if is_meant(COME_AND_GO) {
        let told = comes_and_goes()?;
        let line = format!("{:>4} s {told}", begin.elapsed().as_secs());
        writeln!(io::stdout(), "{line}").map_err(|error| error.to_string())?;
    }
    if words.is_empty() && count < WORLDS_MIN {
        return Err(format!("{count} worlds are fewer than {WORLDS_MIN}"));
    }
    Ok(())
}
