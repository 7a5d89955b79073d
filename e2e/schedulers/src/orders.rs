//! Orders, one a line, and their answers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, stdin, stdout};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use crate::clusters::Clusters;

/// How long a pod may take to come.
const POD_MAX: Duration = Duration::from_secs(30);

/// Obeys until nobody orders any more.
pub(crate) async fn obey(clusters: &Arc<Clusters>) -> anyhow::Result<()> {
    let mut orders = BufReader::new(stdin()).lines();
    while let Some(order) = orders.next_line().await? {
        let words: Vec<&str> = order.split(' ').collect();
        let answer = match words.as_slice() {
            ["demand", count] => json!({ "seconds": demand(clusters, count.parse()?).await }),
            ["hostile"] => json!({ "hostile": turn(clusters) }),
            _ => json!({ "error": format!("{order:?} is no order") }),
        };
        let mut out = stdout();
        out.write_all(format!("{answer}\n").as_bytes()).await?;
        out.flush().await?;
    }
    Ok(())
}

/// Lets work come to clusters, one after the other. Gives for each how long it took until a pod was
/// there to do it, or none if none came.
async fn demand(clusters: &Clusters, count: usize) -> Vec<Option<f64>> {
    let uids: Vec<String> = {
        let known = clusters.lock();
        let step = (known.len() / count.max(1)).max(1);
        known.keys().step_by(step).take(count).cloned().collect()
    };
    let mut took = Vec::new();
    for uid in uids {
        let (pod, comes) = oneshot::channel();
        let begin = Instant::now();
        {
            let mut known = clusters.lock();
            let Some(cluster) = known.get_mut(&uid) else { continue };
            cluster.waits = Some(pod);
            cluster.state.send_modify(|state| {
                state.tasks = state.workers.len() as u64 + 1;
                state.jobs += 1;
            });
        }
        let came = timeout(POD_MAX, comes).await.ok().and_then(Result::ok);
        took.push(came.map(|at| at.duration_since(begin).as_secs_f64()));
        if let Some(cluster) = clusters.lock().get(&uid) {
            cluster.state.send_modify(|state| state.tasks = 0);
        }
        sleep(Duration::from_millis(50)).await;
    }
    took
}

/// Makes all schedulers hostile. Gives how many.
fn turn(clusters: &Clusters) -> usize {
    let known = clusters.lock();
    known.values().map(|it| it.state.send_modify(|state| state.is_hostile = true)).count()
}
