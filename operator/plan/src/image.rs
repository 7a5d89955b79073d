//! Which image a cluster runs: what its spec asks for until it may have computed anything, and from then on the
//! one that it has. Its parts never differ.

use std::time::Duration;

use ebbtide_api::{Cluster, ClusterSpec, names};
use ebbtide_environment::{Key, Request};
use jiff::Timestamp;
use kube::ResourceExt as _;

use crate::check::{check_any, check_size};
use crate::lifetime::since;
use crate::{Observed, PodPhase, PodSeen, Site, request};

/// For how long a scheduler that runs may say nothing before it counts as one that never will: it starts, and
/// when an operator begins all of them dial anew.
const SILENCE: Duration = Duration::from_secs(30);

/// The reason of a cluster whose environment nobody packed.
pub(crate) const NOT_PACKED: &str = "EnvironmentNotPacked";

/// The image that a cluster runs, or why there is none.
pub(crate) enum Image {
    /// Its reference, the key of its package list, and what the spec asks for if that is another.
    Known {
        image: String,
        key: Option<String>,
        other: Option<String>,
    },
    NotPacked {
        key: Key,
        message: String,
    },
    /// Why nothing can be made of the spec, and what runs nevertheless, if it can be told how much of it.
    Refused {
        message: String,
        runs: Option<String>,
    },
}

/// Where the image of a cluster comes from.
enum Source<'a> {
    Given(&'a str),
    Packed(Request),
}

/// The image of a cluster, which is the one that it keeps if there is one.
pub(crate) fn of(cluster: &Cluster, kept: Option<String>, site: &Site) -> Image {
    let source = check_any(&cluster.spec).and_then(|()| source(&cluster.spec));
    let wanted = match source {
        Ok(Source::Given(image)) => {
            Image::Known { image: image.to_owned(), key: None, other: None }
        }
        Ok(Source::Packed(request)) => packed(&request, site),
        Err(message) => {
            let told = || cluster.status.as_ref().and_then(|it| it.image.clone());
            let runs = kept.or_else(told).filter(|_| check_size(&cluster.spec).is_ok());
            return Image::Refused { message, runs };
        }
    };
    match (kept, wanted) {
        (Some(image), Image::NotPacked { key, .. }) => {
            let told = key_of(cluster);
            let other = Some(format!("the package list {key}"));
            let other = other.filter(|_| told.as_deref() != Some(key.as_str()));
            Image::Known { image, key: told, other }
        }
        (Some(kept), Image::Known { image, .. }) if kept != image => {
            Image::Known { image: kept, key: key_of(cluster), other: Some(image) }
        }
        (_, wanted) => wanted,
    }
}

/// The key of the package list of what a cluster runs, as its status tells it.
pub(crate) fn key_of(cluster: &Cluster) -> Option<String> {
    cluster.status.as_ref().and_then(|it| it.environment_key.clone())
}

/// The image that a cluster keeps, once it may have computed anything.
pub(crate) fn kept(cluster: &Cluster, observed: &Observed, now: Timestamp) -> Option<String> {
    let status = cluster.status.as_ref();
    let told = status.and_then(|it| it.image.clone());
    if is_told_to_have_begun(cluster) {
        return told;
    }
    let made_with = || scheduler(cluster, observed).and_then(|it| it.image.clone());
    may_have_begun(cluster, observed, now).then(|| made_with().or(told)).flatten()
}

/// When to look again at a scheduler that does not answer: then it counts as one that never will.
pub(crate) fn next_look(
    cluster: &Cluster,
    observed: &Observed,
    now: Timestamp,
) -> Option<Duration> {
    let is_open = !is_told_to_have_begun(cluster) && observed.demand.is_none();
    silence_left(cluster, observed, now).filter(|_| is_open)
}

/// Whether a cluster has begun to compute, as its status tells.
pub fn is_told_to_have_begun(cluster: &Cluster) -> bool {
    cluster.status.as_ref().is_some_and(|it| it.started_at.is_some())
}

/// Whether a cluster may have begun though its status does not tell.
fn may_have_begun(cluster: &Cluster, observed: &Observed, now: Timestamp) -> bool {
    // Of a time when no pod told its image and no status when it began.
    let is_of_old = |it: &PodSeen| it.is_well() && it.image.is_none();
    observed.pods.iter().any(is_of_old)
        || match &observed.demand {
            Some(demand) => demand.jobs > 0 || demand.clients > 0,
            None => silence_left(cluster, observed, now).is_some(),
        }
}

/// How much longer a scheduler that runs may say nothing.
fn silence_left(cluster: &Cluster, observed: &Observed, now: Timestamp) -> Option<Duration> {
    let running = scheduler(cluster, observed).filter(|it| it.is_well())?;
    let age = running.created_at.map_or(observed.silent_for, |at| since(at, now));
    Some(SILENCE.saturating_sub(observed.silent_for.min(age))).filter(|it| !it.is_zero())
}

/// The pod of its scheduler, if one lives.
pub(crate) fn scheduler<'a>(cluster: &Cluster, observed: &'a Observed) -> Option<&'a PodSeen> {
    let name = names::scheduler(&cluster.name_any());
    let is_alive = |it: &&PodSeen| !it.is_deleting && it.phase != PodPhase::Ended;
    observed.pods.iter().filter(is_alive).find(|it| it.name == name)
}

/// Whether a spec says what its image is.
pub(crate) fn check(spec: &ClusterSpec) -> Result<(), String> {
    source(spec).map(drop)
}

fn source(spec: &ClusterSpec) -> Result<Source<'_>, String> {
    match (&spec.image, &spec.environment) {
        (Some(image), None) if image.is_empty() || image.contains(char::is_whitespace) => {
            Err(format!(
                "spec.image: {image:?} is no image; expected a name without spaces, like registry/name:tag"
            ))
        }
        (Some(image), None) => Ok(Source::Given(image)),
        (None, Some(environment)) => {
            let request = request(environment);
            request.map(Source::Packed).map_err(|error| format!("spec.environment: {error}"))
        }
        (Some(_), Some(_)) | (None, None) => {
            Err("spec: give either image or environment".to_owned())
        }
    }
}

fn packed(request: &Request, site: &Site) -> Image {
    let key = request.key();
    match site.environments.get(key.as_str()) {
        Some(Ok(image)) => {
            return Image::Known { image: image.clone(), key: Some(key.to_string()), other: None };
        }
        Some(Err(reason)) => {
            let message = format!("spec.environment: {reason}");
            return Image::NotPacked { key, message };
        }
        None => {}
    }
    let packages: Vec<&str> = request.packages().collect();
    let message = format!(
        "spec.environment: no image is packed with the key {key}; an administrator packs what \
         `ebbtide env packages` lists and adds the image under that key to environments in the \
         chart's values. It is for python {} with {}",
        request.python(),
        if packages.is_empty() { "no packages".to_owned() } else { packages.join(", ") },
    );
    Image::NotPacked { key, message }
}

#[cfg(test)]
mod tests;
