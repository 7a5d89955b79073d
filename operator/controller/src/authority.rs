//! The installation's authority: made once, kept in a Secret of the operator's namespace, and replaced there
//! step by step.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ebbtide_api::names;
use ebbtide_authority::{Authority, AuthorityError, Kept};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret;
use kube::api::PostParams;
use kube::core::ObjectMeta;
use kube::{Api, Client, ResourceExt as _};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::api_call::{CallError, call};

const NAME: &str = "ebbtide-authority";

/// How often it is looked at, at least; more often while it is being replaced in haste.
const LOOK_INTERVAL: Duration = Duration::from_mins(1);
const LOOK_INTERVAL_MIN: Duration = Duration::from_secs(1);

/// Why the authority could not be looked after.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeepError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("secret {NAME}: {0}")]
    Authority(#[from] AuthorityError),
}

/// Looks after the Secret that keeps the authority.
pub(crate) struct Keeper {
    secrets: Api<Secret>,
    /// How long what a step of a replacement wrote may take to reach everybody.
    pause: SignedDuration,
    kept: Kept,
    told: watch::Sender<Arc<Authority>>,
    begun_at: Instant,
}

impl Keeper {
    /// Loads the authority, or makes it. Two operators that start at once end with the same one.
    pub(crate) async fn load(
        client: &Client,
        namespace: &str,
        pause: SignedDuration,
    ) -> Result<Self, KeepError> {
        let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
        let kept = match call("read the authority", secrets.get_opt(NAME)).await? {
            Some(secret) => read(&secret)?,
            None => keep(&secrets, Kept::create(Timestamp::now())?).await?,
        };
        let (told, _) = watch::channel(Arc::new(kept.authority()?));
        Ok(Self { secrets, pause, kept, told, begun_at: Instant::now() })
    }

    /// The authority, as it is now.
    pub(crate) fn authority(&self) -> watch::Receiver<Arc<Authority>> {
        self.told.subscribe()
    }

    /// Does what is due, for as long as the operator lives.
    pub(crate) async fn work(mut self) {
        let interval = LOOK_INTERVAL.min(self.pause.unsigned_abs() / 4).max(LOOK_INTERVAL_MIN);
        loop {
            sleep(interval).await;
            if let Err(error) = self.look().await {
                tracing::warn!(%error, "the authority stays as it was");
            }
        }
    }

    async fn look(&mut self) -> Result<(), KeepError> {
        let there = call("read the authority", self.secrets.get_opt(NAME)).await?;
        let Some(secret) = there else {
            tracing::warn!("secret {NAME} was deleted: it is made again as it was");
            return self.follow(keep(&self.secrets, self.kept.clone()).await?);
        };
        let kept = read(&secret)?;
        // What the one before wrote last may not have reached anybody when it ended.
        if kept.is_being_replaced() && self.begun_at.elapsed() < self.pause.unsigned_abs() {
            return self.follow(kept);
        }
        let is_asked = secret.annotations().contains_key(names::RENEW);
        let Some(next) = kept.step(is_asked, self.pause, Timestamp::now())? else {
            return self.follow(kept);
        };
        // The wish is fulfilled by what begins now, and by nothing that was under way.
        let is_heard = is_asked && !kept.is_being_replaced() && next.is_being_replaced();
        let changed = Secret {
            metadata: ObjectMeta {
                annotations: Some(
                    secret
                        .annotations()
                        .iter()
                        .filter(|(name, _)| !is_heard || *name != names::RENEW)
                        .map(|(name, value)| (name.clone(), value.clone()))
                        .collect(),
                ),
                managed_fields: None,
                ..secret.metadata.clone()
            },
            ..holding(&next)
        };
        let params = PostParams::default();
        match call("keep the authority", self.secrets.replace(NAME, &params, &changed)).await {
            Ok(_) => self.follow(next),
            // Somebody wrote meanwhile: the next look sees what.
            Err(error) if error.is_conflict() || error.is_gone() => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Goes by what is kept now.
    fn follow(&mut self, kept: Kept) -> Result<(), KeepError> {
        if kept != self.kept {
            let authority = kept.authority()?;
            tracing::info!(edition = authority.edition(), "the authority changed");
            self.kept = kept;
            self.told.send_if_modified(|told| {
                let is_another = told.edition() != authority.edition();
                *told = Arc::new(authority);
                is_another
            });
        }
        Ok(())
    }
}

/// Keeps an authority where there is none. Gives the one that is kept then.
async fn keep(secrets: &Api<Secret>, kept: Kept) -> Result<Kept, KeepError> {
    let metadata = ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() };
    let secret = Secret { metadata, ..holding(&kept) };
    match call("keep the authority", secrets.create(&PostParams::default(), &secret)).await {
        Ok(_) => Ok(kept),
        Err(error) if error.is_already_there() => {
            read(&call("read the authority", secrets.get(NAME)).await?)
        }
        Err(error) => Err(error.into()),
    }
}

fn holding(kept: &Kept) -> Secret {
    Secret { string_data: Some(kept.files()), ..Secret::default() }
}

fn read(secret: &Secret) -> Result<Kept, KeepError> {
    let data = secret.data.iter().flatten();
    let files: BTreeMap<String, Vec<u8>> =
        data.map(|(name, bytes)| (name.clone(), bytes.0.clone())).collect();
    Ok(Kept::read(&files)?)
}
