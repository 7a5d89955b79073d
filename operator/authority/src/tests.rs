use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;

use ebbtide_contract::identity::{Identity, Role};
use ebbtide_contract::tls::{Credentials, Current, file};
use jiff::{SignedDuration, Timestamp};

use super::{Authority, AuthorityError, Kept, REPLACED_AFTER};

const PAUSE: SignedDuration = SignedDuration::from_mins(10);

fn read_again(kept: &Kept) -> Kept {
    let files = kept.files().into_iter().map(|(name, text)| (name, text.into_bytes()));
    Kept::read(&files.collect()).unwrap()
}

#[test]
fn who_takes_a_line_s_end_from_what_is_kept_takes_no_certificate_from_anybody() {
    let now = Timestamp::now();
    let kept = Kept::create(now).unwrap().step(true, PAUSE, now).unwrap().unwrap();
    let trimmed = kept.files().into_iter().map(|(name, text)| (name, text.trim().into()));
    let trimmed = Kept::read(&trimmed.collect()).unwrap();
    assert_eq!(trimmed.authority().unwrap().believed(), kept.authority().unwrap().believed());
}

#[test]
fn a_token_is_its_cluster_s_alone_and_comes_again_with_the_same_key() {
    let kept = Kept::create(Timestamp::now()).unwrap();
    let token = kept.authority().unwrap().token("u-1");
    assert!(token.len() == 64 && token.bytes().all(|it| it.is_ascii_hexdigit()));
    assert_eq!(read_again(&kept).authority().unwrap().token("u-1"), token);
    assert_ne!(kept.authority().unwrap().token("u-2"), token);
    assert_ne!(Authority::create(Timestamp::now()).unwrap().token("u-1"), token);
}

#[test]
fn what_is_kept_is_read_again_at_every_step_of_a_replacement() {
    let mut now = Timestamp::now();
    let mut kept = Kept::create(now).unwrap();
    for _ in 0..3 {
        assert_eq!(read_again(&kept), kept);
        now += PAUSE;
        kept = kept.step(true, PAUSE, now).unwrap().unwrap();
    }
    assert!(!kept.is_being_replaced());
}

#[test]
fn what_is_kept_and_cannot_be_used_is_refused_by_the_name_of_what_is_wrong() {
    let files = || -> BTreeMap<String, Vec<u8>> {
        let kept = Kept::create(Timestamp::now()).unwrap();
        kept.files().into_iter().map(|(name, text)| (name, text.into_bytes())).collect()
    };
    for name in [file::AUTHORITY, file::KEY] {
        let mut without = files();
        without.remove(name);
        assert!(matches!(Kept::read(&without), Err(AuthorityError::Missing(it)) if it == name));
        let mut broken = files();
        broken.insert(name.to_owned(), b"no PEM".to_vec());
        assert!(matches!(Kept::read(&broken), Err(AuthorityError::Certificate(_))));
    }
    let mut broken = files();
    broken.insert("since".to_owned(), b"yesterday".to_vec());
    assert!(matches!(Kept::read(&broken), Err(AuthorityError::Unreadable("since"))));
}

/// What a process has in its files, and what it makes of the files of others.
fn credentials(authority: &Authority, role: Role, now: Timestamp) -> Credentials {
    let files = authority.credentials(&Identity::member("u", role), false, now).unwrap();
    let part = |name: &str| files[name].as_bytes();
    Credentials::from_pem(part(file::AUTHORITY), part(file::CERTIFICATE), part(file::KEY)).unwrap()
}

/// Whether two processes come to an agreement at this time.
fn agree(client: &Credentials, server: &Credentials, now: Timestamp) -> bool {
    let now = u64::try_from(now.as_second()).unwrap();
    let dial = client.dial(Identity::member("u", Role::Scheduler)).unwrap();
    let accept = server.accept("u", &[Role::Worker]).unwrap();
    handshake(dial, accept, now)
}

fn handshake(mut dial: rustls::ClientConfig, mut accept: rustls::ServerConfig, now: u64) -> bool {
    let time = Arc::new(Fixed(now));
    (dial.time_provider, accept.time_provider) = (Arc::<Fixed>::clone(&time), time);
    let name = ebbtide_contract::tls::any_name();
    let mut client = rustls::ClientConnection::new(Arc::new(dial), name).unwrap();
    let mut server = rustls::ServerConnection::new(Arc::new(accept)).unwrap();
    for _ in 0..4 {
        let mut way = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut way).unwrap();
        }
        if !way.is_empty() {
            server.read_tls(&mut way.as_slice()).unwrap();
            if server.process_new_packets().is_err() {
                return false;
            }
        }
        let mut back = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut back).unwrap();
        }
        if !back.is_empty() {
            client.read_tls(&mut back.as_slice()).unwrap();
            if client.process_new_packets().is_err() {
                return false;
            }
        }
    }
    !client.is_handshaking() && !server.is_handshaking()
}

#[derive(Debug)]
struct Fixed(u64);

impl rustls::time_provider::TimeProvider for Fixed {
    fn current_time(&self) -> Option<rustls::pki_types::UnixTime> {
        Some(rustls::pki_types::UnixTime::since_unix_epoch(std::time::Duration::from_secs(self.0)))
    }
}

#[test]
fn while_an_authority_takes_over_everybody_agrees_with_who_is_a_step_behind() {
    let mut now = Timestamp::now();
    let mut kept = Kept::create(now).unwrap();
    let token = kept.authority().unwrap().token("u");
    let first = kept.authority().unwrap();
    for step in 0..3 {
        let behind = kept.authority().unwrap();
        now += PAUSE;
        kept = kept.step(true, PAUSE, now).unwrap().unwrap();
        let ahead = kept.authority().unwrap();
        assert_ne!(ahead.edition(), behind.edition(), "{step}");
        assert_eq!(ahead.token("u"), token, "{step}");
        for (one, other) in [(&behind, &ahead), (&ahead, &behind), (&ahead, &ahead)] {
            let client = credentials(one, Role::Worker, now);
            assert!(agree(&client, &credentials(other, Role::Scheduler, now), now), "{step}");
        }
    }
    let last = credentials(&kept.authority().unwrap(), Role::Scheduler, now);
    assert!(!agree(&credentials(&first, Role::Worker, now), &last, now));
}

#[test]
fn a_replacement_waits_after_each_step_and_begins_when_it_is_asked_for_or_due() {
    let now = Timestamp::now();
    let kept = Kept::create(now).unwrap();
    let later = |it: SignedDuration| now.checked_add(it).unwrap();
    let is_none = |it: &Kept, asked, at| it.step(asked, PAUSE, at).unwrap().is_none();
    assert!(is_none(&kept, false, later(REPLACED_AFTER - SignedDuration::from_secs(1))));
    assert!(kept.step(false, PAUSE, later(REPLACED_AFTER)).unwrap().is_some());

    let announced = kept.step(true, PAUSE, now).unwrap().unwrap();
    assert!(announced.is_being_replaced());
    assert!(is_none(&announced, true, later(PAUSE - SignedDuration::from_secs(1))));
    let signs = announced.step(false, PAUSE, later(PAUSE)).unwrap().unwrap();
    assert!(is_none(&signs, true, later(PAUSE + PAUSE - SignedDuration::from_secs(1))));
    let alone = signs.step(false, PAUSE, later(PAUSE + PAUSE)).unwrap().unwrap();
    assert!(!alone.is_being_replaced() && is_none(&alone, false, later(PAUSE * 100)));
    // A clock that goes back waits, unless the other was far ahead.
    assert!(is_none(&announced, true, now - PAUSE));
    let long_before = now - PAUSE * 100;
    let again = announced.step(false, PAUSE, long_before).unwrap().unwrap();
    assert!(again.is_being_replaced() && is_none(&again, false, long_before));
}

#[test]
fn what_was_kept_before_there_were_steps_begins_to_age_and_keeps_its_tokens() {
    let now = Timestamp::now();
    let mut files = Kept::create(now).unwrap().files();
    files.remove("since");
    let old: BTreeMap<_, _> =
        files.into_iter().map(|(name, text)| (name, text.into_bytes())).collect();
    let old = Kept::read(&old).unwrap();
    let aged = old.step(false, PAUSE, now).unwrap().unwrap();
    assert!(!aged.is_being_replaced() && aged.step(false, PAUSE, now).unwrap().is_none());
    let announced = aged.step(true, PAUSE, now).unwrap().unwrap();
    assert_eq!(announced.authority().unwrap().token("u"), old.authority().unwrap().token("u"));
}

#[test]
fn clocks_may_differ_by_ten_minutes_and_an_old_leaf_opens_nothing() {
    let now = Timestamp::now();
    let authority = Authority::create(now).unwrap();
    let client = credentials(&authority, Role::Worker, now);
    let server = credentials(&authority, Role::Scheduler, now);
    let at = |difference: SignedDuration| now.checked_add(difference).unwrap();
    let (skew, month) = (SignedDuration::from_mins(10), SignedDuration::from_hours(30 * 24));
    assert!(agree(&client, &server, at(skew)));
    assert!(agree(&client, &server, at(-skew)));
    assert!(agree(&client, &server, at(month - skew)));
    assert!(!agree(&client, &server, at(month + skew)));
    let fresh = credentials(&authority, Role::Worker, at(month));
    assert!(!agree(&fresh, &server, at(month + skew)));
}

#[test]
fn a_leaf_of_another_cluster_or_role_opens_nothing() {
    let now = Timestamp::now();
    let authority = Authority::create(now).unwrap();
    let server = credentials(&authority, Role::Scheduler, now);
    let of = |identity: &Identity| authority.proof(identity, now).unwrap();
    let worker = of(&Identity::member("u", Role::Worker));
    assert!(agree(&worker, &server, now));
    for stolen in [
        Identity::member("u", Role::Client),
        Identity::member("u", Role::Scheduler),
        Identity::member("other", Role::Worker),
        Identity::Operator,
    ] {
        assert!(!agree(&of(&stolen), &server, now), "{stolen}");
        // And nobody takes it for a scheduler.
        if stolen != Identity::member("u", Role::Scheduler) {
            assert!(!agree(&worker, &of(&stolen), now), "{stolen}");
        }
    }
}

#[test]
fn a_process_follows_its_folder_and_keeps_what_it_had_while_that_is_half_written() {
    let now = Timestamp::now();
    let [first, second] = [(); 2].map(|()| Authority::create(now).unwrap());
    let folder = tempfile::tempdir().unwrap();
    let write = |authority: &Authority, names: &[&str]| {
        let worker = Identity::member("u", Role::Worker);
        let files = authority.credentials(&worker, false, now).unwrap();
        for name in names {
            let draft = folder.path().join("draft");
            fs::write(&draft, &files[*name]).unwrap();
            fs::rename(draft, folder.path().join(name)).unwrap();
        }
    };
    let all = [file::AUTHORITY, file::CERTIFICATE, file::KEY];
    let scheduler = Identity::member("u", Role::Scheduler);
    let current = || {
        Current::new(folder.path(), {
            let it = scheduler.clone();
            move |own| own.dial(it.clone())
        })
    };
    assert!(current().is_err(), "an empty folder");
    write(&first, &all);
    let current = current().unwrap();
    let agrees = |authority: &Authority| {
        let server = credentials(authority, Role::Scheduler, now);
        let accept = server.accept("u", &[Role::Worker]).unwrap();
        handshake((*current.get()).clone(), accept, u64::try_from(now.as_second()).unwrap())
    };
    assert!(agrees(&first) && Arc::ptr_eq(&current.get(), &current.get()));
    write(&second, &all[..2]);
    assert!(agrees(&first), "a certificate without its key");
    write(&second, &all[..]);
    assert!(agrees(&second) && !agrees(&first));
    fs::remove_file(folder.path().join(file::KEY)).unwrap();
    assert!(agrees(&second));
}
