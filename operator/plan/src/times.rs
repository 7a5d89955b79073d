//! How long a cluster was in each phase.

use ebbtide_api::status::PhaseTime;
use ebbtide_api::{ClusterStatus, Phase};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

/// A status with the time since when it has its phase, and how long the phases before it took.
pub(crate) fn timed(
    before: Option<&ClusterStatus>,
    status: ClusterStatus,
    now: Timestamp,
) -> ClusterStatus {
    let since = before.and_then(|it| Some((it, it.phase_since.as_ref()?)));
    let (phase_since, phases) = match since {
        Some((before, since)) if before.phase == status.phase => {
            (since.clone(), before.phases.clone())
        }
        Some((before, since)) => {
            let took = now.as_millisecond().saturating_sub(since.0.as_millisecond()).max(0);
            (micro(now), added(&before.phases, before.phase, took))
        }
        None => (micro(now), Vec::new()),
    };
    ClusterStatus { phase_since: Some(phase_since), phases, ..status }
}

fn added(before: &[PhaseTime], phase: Phase, milliseconds: i64) -> Vec<PhaseTime> {
    let mut phases = before.to_vec();
    match phases.iter_mut().find(|it| it.phase == phase) {
        Some(it) => it.milliseconds = it.milliseconds.saturating_add(milliseconds),
        None => phases.push(PhaseTime { phase, milliseconds }),
    }
    phases
}

/// Kubernetes keeps microseconds: anything finer would differ at every read.
fn micro(at: Timestamp) -> MicroTime {
    MicroTime(Timestamp::from_microsecond(at.as_microsecond()).unwrap_or(at))
}

#[cfg(test)]
mod tests {
    use ebbtide_api::status::PhaseTime;
    use ebbtide_api::{ClusterStatus, Phase};
    use jiff::Timestamp;

    use super::timed;

    fn at(milliseconds: i64) -> Timestamp {
        Timestamp::from_millisecond(milliseconds).unwrap()
    }

    #[test]
    fn each_phase_has_the_time_of_all_its_stays_and_the_present_one_its_begin() {
        let mut status = None::<ClusterStatus>;
        for (phase, time) in [
            (Phase::Starting, 1_000),
            (Phase::Starting, 1_500),
            (Phase::Ready, 3_250),
            (Phase::Degraded, 5_250),
            (Phase::Ready, 5_300),
            (Phase::Deleting, 6_300),
        ] {
            let planned = ClusterStatus { phase, ..ClusterStatus::default() };
            status = Some(timed(status.as_ref(), planned, at(time)));
        }
        let status = status.unwrap();
        let took = |phase, milliseconds| PhaseTime { phase, milliseconds };
        let expected =
            [took(Phase::Starting, 2_250), took(Phase::Ready, 3_000), took(Phase::Degraded, 50)];
        assert_eq!(status.phases, expected);
        assert_eq!(status.phase_since.unwrap().0, at(6_300));
    }

    #[test]
    fn a_clock_that_goes_back_takes_no_time_away() {
        let phase = |phase| ClusterStatus { phase, ..ClusterStatus::default() };
        let first = timed(None, phase(Phase::Starting), at(9_000));
        let second = timed(Some(&first), phase(Phase::Ready), at(8_000));
        assert_eq!(second.phases[0].milliseconds, 0);
    }
}
