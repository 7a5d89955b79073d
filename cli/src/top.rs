//! All clusters on one screen, as they are now: pure rows, and a screen that is put back as it was.

use std::io::{self, IsTerminal as _, Stdout, Write as _};
use std::time::Duration;

use ebbtide_api::Cluster;
use ebbtide_plan::requested::Requested;
use jiff::Timestamp;
use kube::ResourceExt as _;
use rustix::termios::tcgetwinsize;
use tokio::time::sleep;

use crate::backend::{Backend, Listed, Scope};
use crate::{node, output, story};

/// How often clusters are looked at.
const INTERVAL: Duration = Duration::from_secs(2);

/// What is taken of a terminal that does not tell its size: rows and columns.
const SIZE: (usize, usize) = (24, 80);

/// Shows clusters until somebody wants no more. Without a terminal: once.
pub(crate) async fn top(backend: &Backend, scope: Scope) -> anyhow::Result<()> {
    let mut shown = rows(&backend.list(scope).await?, Timestamp::now());
    if !io::stdout().is_terminal() {
        return shown.iter().try_for_each(|row| output::line(row));
    }
    let mut screen = Screen::enter()?;
    let mut ended = std::pin::pin!(node::asked_to_end());
    let mut trouble = None;
    loop {
        let beneath = trouble.take().unwrap_or_else(|| "Ctrl-C ends this".to_owned());
        screen.show(&shown, &beneath)?;
        tokio::select! {
            _ = &mut ended => return Ok(()),
            () = sleep(INTERVAL) => {}
        }
        match backend.list(scope).await {
            Ok(listed) => shown = rows(&listed, Timestamp::now()),
            // What was there last stays, and it is said that it is old.
            Err(error) => trouble = Some(format!("not up to date: {error:#}")),
        }
    }
}

/// A line for all of them, a head, and a line for each: those that ask for most first.
fn rows(Listed { objects: clusters, unreadable }: &Listed<Cluster>, now: Timestamp) -> Vec<String> {
    let mut asking: Vec<(&Cluster, Requested)> =
        clusters.iter().map(|cluster| (cluster, Requested::by(cluster))).collect();
    asking.sort_by(|(one, asks), (other, more)| {
        let name = |it: &Cluster| (it.namespace(), it.name_any());
        more.cpus.total_cmp(&asks.cpus).then_with(|| name(one).cmp(&name(other)))
    });
    let mut all = Requested::default();
    for (_, asks) in &asking {
        all += *asks;
    }
    let workers: i32 =
        clusters.iter().filter_map(|it| Some(it.status.as_ref()?.workers.ready)).sum();
    let counted =
        |count: usize, what| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let head = format!(
        "{}, {} ready, {} cores and {} asked for, {}",
        counted(clusters.len(), "cluster"),
        counted(usize::try_from(workers).unwrap_or_default(), "worker"),
        cores(all.cpus),
        gibibytes(all.memory_bytes),
        now.strftime("%H:%M:%SZ")
    );
    let names = [
        "NAMESPACE",
        "NAME",
        "PHASE",
        "READY",
        "WANTED",
        "MAX",
        "CPU",
        "MEMORY",
        "IDLE",
        "AGE",
        "",
    ];
    let rows = std::iter::once(names.map(str::to_owned))
        .chain(asking.iter().map(|(cluster, asks)| row(cluster, *asks, now)));
    let rows: Vec<_> = rows.collect();
    let unreadable = unreadable.iter().map(|it| it.replace(char::is_control, " "));
    std::iter::once(head).chain(output::columns(&rows)).chain(unreadable).collect()
}

fn row(cluster: &Cluster, asks: Requested, now: Timestamp) -> [String; 11] {
    let status = cluster.status.clone().unwrap_or_default();
    let max: i64 = cluster.spec.workers.iter().map(|it| i64::from(it.max)).sum();
    let since = |at: Option<Timestamp>| at.map(|at| story::age(at, now)).unwrap_or_default();
    [
        cluster.namespace().unwrap_or_default(),
        cluster.name_any(),
        format!("{:?}", status.phase),
        status.workers.ready.to_string(),
        status.workers.desired.to_string(),
        max.to_string(),
        cores(asks.cpus),
        gibibytes(asks.memory_bytes),
        since(status.idle_since.map(|it| it.0)),
        since(cluster.creation_timestamp().map(|it| it.0)),
        status.message.unwrap_or_default().replace(char::is_control, " "),
    ]
}

/// With one place behind the point where there is something.
fn cores(cpus: f64) -> String {
    let text = format!("{cpus:.1}");
    text.strip_suffix(".0").map(str::to_owned).unwrap_or(text)
}

fn gibibytes(bytes: u64) -> String {
    format!("{}Gi", cores(bytes as f64 / f64::from(1 << 30)))
}

/// As many lines as a screen has above its last, each as long as it is wide. The last tells what is left out.
fn fitting(lines: &[String], beneath: &str, (height, width): (usize, usize)) -> Vec<String> {
    let room = height.saturating_sub(1);
    let beneath = match lines.len().saturating_sub(room) {
        0 => beneath.to_owned(),
        left_out => format!("{beneath}; {left_out} more do not fit"),
    };
    let lines = lines.iter().take(room).chain([&beneath]);
    lines.map(|line| line.chars().filter(|it| !it.is_control()).take(width).collect()).collect()
}

/// A terminal whose screen is ours, and comes back when this goes.
struct Screen(Stdout);

impl Screen {
    fn enter() -> io::Result<Self> {
        let mut screen = Self(io::stdout());
        screen.write("\x1b[?1049h\x1b[?25l")?;
        Ok(screen)
    }

    fn show(&mut self, lines: &[String], beneath: &str) -> io::Result<()> {
        let size = tcgetwinsize(&self.0)
            .map(|it| (usize::from(it.ws_row), usize::from(it.ws_col)))
            .ok()
            .filter(|(rows, columns)| *rows > 0 && *columns > 0);
        let lines = fitting(lines, beneath, size.unwrap_or(SIZE));
        self.write(&format!("\x1b[H{}\x1b[K\x1b[J", lines.join("\x1b[K\r\n")))
    }

    fn write(&mut self, text: &str) -> io::Result<()> {
        self.0.write_all(text.as_bytes())?;
        self.0.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // The terminal may be gone, and then there is nothing to put back.
        let _: io::Result<()> = self.write("\x1b[?25h\x1b[?1049l");
    }
}

#[cfg(test)]
mod tests {
    use ebbtide_api::Cluster;
    use jiff::Timestamp;
    use serde_json::{Value, json};

    use super::{Listed, fitting, rows};

    fn cluster(name: &str, status: &Value) -> Cluster {
        let resources = json!({ "cpu": "500m", "memory": "2Gi" });
        serde_json::from_value(json!({
            "metadata": { "name": name, "namespace": "rates",
                "creationTimestamp": "2026-01-01T00:00:00Z" },
            "spec": {
                "image": "i",
                "scheduler": { "resources": { "cpu": 1, "memory": "1Gi" } },
                "workers": [{ "name": "w", "max": 4, "resources": resources }],
            },
            "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn who_asks_for_most_comes_first_and_all_of_them_are_summed_up() {
        let now = "2026-01-01T03:00:00Z".parse::<Timestamp>().unwrap();
        let group = json!([{ "name": "w", "desired": 3, "ready": 2, "starting": 1 }]);
        let small = cluster(
            "small",
            &json!({ "phase": "Ready", "image": "i", "idleSince": "2026-01-01T02:50:00Z" }),
        );
        let large = cluster(
            "large",
            &json!({ "phase": "Starting", "image": "i", "groups": group, "message": "waits\nlong",
                "workers": { "desired": 3, "ready": 2, "starting": 1 } }),
        );
        let told = "\
2 clusters, 2 workers ready, 3.5 cores and 8Gi asked for, 03:00:00Z
NAMESPACE  NAME   PHASE     READY  WANTED  MAX  CPU  MEMORY  IDLE  AGE
rates      large  Starting  2      3       4    2.5  7Gi           3h   waits long
rates      small  Ready     0      0       4    1    1Gi     10m   3h";
        let odd = vec!["cluster odd cannot be read".to_owned()];
        let listed = Listed { objects: vec![small, large], unreadable: odd };
        assert_eq!(rows(&listed, now).join("\n"), format!("{told}\ncluster odd cannot be read"));
    }

    #[test]
    fn one_is_no_plural() {
        let alone = cluster("alone", &json!({ "phase": "Ready", "workers": { "ready": 1 } }));
        let listed = Listed { objects: vec![alone], unreadable: Vec::new() };
        let told = rows(&listed, Timestamp::UNIX_EPOCH);
        assert!(told[0].starts_with("1 cluster, 1 worker ready, "), "{}", told[0]);
    }

    #[test]
    fn a_screen_holds_what_fits_and_tells_how_much_does_not() {
        let lines: Vec<String> = (0..5).map(|nth| format!("line {nth}\x1b[2J")).collect();
        let shown = fitting(&lines, "beneath", (3, 30));
        assert_eq!(shown, ["line 0[2J", "line 1[2J", "beneath; 3 more do not fit"]);
        assert_eq!(fitting(&lines[..2], "beneath", (9, 4)), ["line", "line", "bene"]);
    }
}
