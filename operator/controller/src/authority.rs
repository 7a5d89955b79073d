//! The installation's authority: made once, kept in a Secret of the operator's namespace.

use std::collections::BTreeMap;

use anyhow::Context as _;
use ebbtide_authority::Authority;
use ebbtide_contract::tls::file;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::api::PostParams;
use kube::core::ObjectMeta;
use kube::{Api, Client};

use crate::api_call::call;

const NAME: &str = "ebbtide-authority";

/// Loads the authority, or makes it. Two operators that start at once end with the same one.
pub(crate) async fn load(client: &Client, namespace: &str) -> anyhow::Result<Authority> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    if let Some(kept) = call("read the authority", secrets.get_opt(NAME)).await? {
        return read(&kept);
    }
    let (made, key) = Authority::create(Timestamp::now())?;
    let secret = Secret {
        metadata: ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() },
        string_data: Some(BTreeMap::from([
            (file::AUTHORITY.to_owned(), made.certificate().to_owned()),
            (file::KEY.to_owned(), key),
        ])),
        ..Secret::default()
    };
    match call("keep the authority", secrets.create(&PostParams::default(), &secret)).await {
        Ok(_) => Ok(made),
        Err(error) if error.is_already_there() => {
            read(&call("read the authority", secrets.get(NAME)).await?)
        }
        Err(error) => Err(error.into()),
    }
}

fn read(secret: &Secret) -> anyhow::Result<Authority> {
    let text = |key: &str| -> anyhow::Result<String> {
        let bytes = secret.data.as_ref().and_then(|data| data.get(key));
        let bytes = bytes.with_context(|| format!("secret {NAME} has no {key}"))?;
        Ok(String::from_utf8(bytes.0.clone())?)
    };
    Ok(Authority::load(text(file::AUTHORITY)?, &text(file::KEY)?)?)
}
