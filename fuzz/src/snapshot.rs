//! Snapshots: files and what agents serve, which a compromised node may make up.

use guardrail_graph::{
    Snapshot,
    epoch::{file, log::base_of, state::State},
    snapshot::{self, Document, Packed},
};

fn parse(bytes: &[u8]) -> Option<Snapshot> {
    match Snapshot::from_json(&String::from_utf8_lossy(bytes), "fuzz.json") {
        Ok(snapshot) => Some(snapshot),
        Err(error) => {
            let message = error.to_string();
            assert!(message.starts_with("fuzz.json: ") && !message.contains(char::is_control), "{message:?}");
            None
        }
    }
}

/// What was read is written and read again without a change; joining it with itself changes nothing
/// more.
pub(super) fn read(bytes: &[u8]) {
    let Some(snapshot) = parse(bytes) else { return };
    let text = snapshot.to_json();
    assert_eq!(Snapshot::from_json(&text, "again").expect("what was written can be read"), snapshot);
    // Commands refuse it.
    if snapshot.check_times().is_err() {
        return;
    }
    let once = snapshot::merge(vec![snapshot.clone()]);
    assert_eq!(snapshot::merge(vec![once.clone()]), once, "idempotent");
    assert_eq!(snapshot::merge(vec![snapshot.clone(), snapshot]), once, "twice is once");
    let text = once.to_json();
    assert_eq!(Snapshot::from_json(&text, "again").expect("what was written can be read"), once);
    let _ = once.edge_counters();
    for workload in &once.body.workloads {
        let _ = once.node_view(&workload.workload);
    }
}

/// The file of an epoch: what was read is written and read again without a change.
pub(super) fn epoch(bytes: &[u8]) {
    let Ok((header, snapshot)) = file::decode(bytes) else { return };
    assert_eq!(file::Header::read(bytes).expect("it was read"), header);
    assert_eq!(file::key_of(&snapshot).as_ref(), Some(&header.key));
    let document = Document::joined([snapshot]);
    let (again, read) = file::decode(&file::encode(&header, &document)).expect("what was written can be read");
    assert_eq!((again, Document::joined([read]).snapshot()), (header, document.snapshot()));
}

/// Facts of an epoch, packed: what was read is packed and read again without a change.
pub(super) fn facts(bytes: &[u8]) {
    let Ok(packed) = Packed::read(bytes.to_vec()) else { return };
    let document = Document::joined([packed.unpacked()]);
    let again = Packed::read(Packed::of(&document).into()).expect("what was written can be read");
    let whole = document.snapshot();
    assert_eq!(Document::joined([again.unpacked()]).snapshot(), whole, "nothing is lost");
    let once = snapshot::merge(vec![whole.clone()]);
    assert_eq!(snapshot::merge(vec![once.clone(), packed.unpacked()]), once, "twice is once");
}

/// The open epoch on disk. A length of the base (four bytes, the lowest first), the base and its
/// log; or any operations, as a base whose checksums are right.
pub(super) fn state(bytes: &[u8]) {
    let files = bytes
        .split_first_chunk()
        .and_then(|(length, files)| files.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?));
    let (base, log) = files.unwrap_or((bytes, &[]));
    let stored = State::read(base, log).into_iter().chain(State::read(&base_of(bytes), &[]));
    for state in stored {
        assert!(state.cut().is_none_or(|cut| cut.at < log.len() as u64));
        let end = state.at();
        let Ok(facts) = state.facts(end) else { continue };
        assert_eq!(state.facts(end).as_ref(), Ok(&facts));
        let text = facts.to_json();
        assert_eq!(Snapshot::from_json(&text, "facts").expect("what was written can be read"), facts);
        let whole = state.document(end).expect("its facts can be read").snapshot();
        assert_eq!(snapshot::merge(vec![whole.clone()]), whole, "idempotent");
    }
}

/// Up to three documents, apart by a line `---`: joining them is commutative and associative.
pub(super) fn merge(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let read: Vec<Snapshot> = text.split("\n---\n").take(3).filter_map(|part| parse(part.as_bytes())).collect();
    let [a, b, rest @ ..] = &read[..] else { return };
    let join = |parts: &[&Snapshot]| snapshot::merge(parts.iter().map(|s| (*s).clone()).collect());
    assert_eq!(join(&[a, b]), join(&[b, a]), "commutative");
    assert_eq!(join(&[&join(&[a]), b]), join(&[a, b]), "a snapshot alone loses nothing");
    if let [c] = rest {
        let all = join(&[a, b, c]);
        assert_eq!(join(&[&join(&[a, b]), c]), all, "associative");
        assert_eq!(join(&[a, &join(&[b, c])]), all, "associative");
        assert_eq!(join(&[&all, b]), all, "idempotent");
    }
}
