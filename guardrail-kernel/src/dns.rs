//! DNS answers, as a resolver in some pod received them: which addresses did this name have?

use std::net::IpAddr;

use simple_dns::{Packet, PacketFlag, rdata::RData};

/// Longest name in text form, without the trailing dot (RFC 1035 §2.3.4: 255 bytes on the wire).
const MAX_NAME: usize = 253;

/// The name asked for (lower case, no trailing dot) and the A and AAAA addresses of the answer;
/// `None` if this is no answer to one question, holds no address, or asks for what is no host name:
/// whoever sends the answer chooses the bytes, and names are shown to people. Any bytes are taken.
pub(crate) fn answer(message: &[u8]) -> Option<(String, Vec<IpAddr>)> {
    let packet = Packet::parse(message).ok()?;
    if !packet.has_flags(PacketFlag::RESPONSE) {
        return None;
    }
    let [question] = packet.questions.as_slice() else { return None };
    let name = name(question.qname.as_bytes())?;
    let addresses: Vec<IpAddr> = packet
        .answers
        .iter()
        .filter_map(|record| match &record.rdata {
            RData::A(a) => Some(IpAddr::from(a.address.to_be_bytes())),
            RData::AAAA(a) => Some(IpAddr::from(a.address.to_be_bytes())),
            _ => None,
        })
        .collect();
    (!addresses.is_empty()).then_some((name, addresses))
}

/// A host name as text, `None` if a label holds anything but letters, digits, `-` and `_`.
fn name<'a>(labels: impl Iterator<Item = &'a [u8]>) -> Option<String> {
    let mut name = String::new();
    for label in labels {
        if label.is_empty() || !label.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-' || *b == b'_') {
            return None;
        }
        if !name.is_empty() {
            name.push('.');
        }
        name.extend(label.iter().map(|b| char::from(b.to_ascii_lowercase())));
    }
    (!name.is_empty() && name.len() <= MAX_NAME).then_some(name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use simple_dns::{CLASS, Name, Question, ResourceRecord, TYPE, rdata};

    use super::*;

    fn message(reply: bool) -> Vec<u8> {
        let mut packet = if reply { Packet::new_reply(7) } else { Packet::new_query(7) };
        let name = Name::new_unchecked("API.Example.org");
        packet.questions.push(Question::new(name.clone(), TYPE::A.into(), CLASS::IN.into(), false));
        let alias = Name::new_unchecked("edge.example.net");
        packet.answers.push(ResourceRecord::new(name, CLASS::IN, 60, RData::CNAME(alias.clone().into())));
        packet.answers.push(ResourceRecord::new(alias, CLASS::IN, 60, RData::A(rdata::A { address: 0xC000_0201 })));
        packet.build_bytes_vec_compressed().expect("builds")
    }

    #[test]
    fn the_name_is_the_one_asked_for_and_the_addresses_are_those_behind_its_aliases() {
        assert_eq!(
            answer(&message(true)),
            Some(("api.example.org".to_owned(), vec!["192.0.2.1".parse().expect("ip")]))
        );
    }

    #[test]
    fn what_is_no_host_name_gives_none() {
        for label in [&b"a b"[..], b"a\x1b[2J", b"a\n", b"a\"]", b"google.com", b"\xff", b"<b>"] {
            assert_eq!(name([label, b"org"].into_iter()), None, "{label:?}");
        }
        assert_eq!(name([&b"_SRV"[..], b"a-1"].into_iter()), Some("_srv.a-1".to_owned()));
        assert_eq!(name([&[b'a'; 63][..]; 5].into_iter()), None, "too long");
        assert_eq!(name(std::iter::empty()), None);
    }

    #[test]
    fn a_question_is_no_answer() {
        assert_eq!(answer(&message(false)), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..600), at in 0usize..40, byte: u8) {
            let _ = answer(&bytes);
            let mut broken = message(true);
            let length = broken.len();
            broken[at % length] = byte;
            let _ = answer(&broken);
        }
    }
}
