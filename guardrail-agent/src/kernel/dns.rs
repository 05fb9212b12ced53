//! DNS answers, as a resolver in some pod received them: which addresses did this name have?

use std::net::IpAddr;

use simple_dns::{Packet, PacketFlag, rdata::RData};

/// The name asked for (lower case, no trailing dot) and the A and AAAA addresses of the answer; `None` if this is no answer to one question, or holds no address.
/// Any bytes are taken.
pub(crate) fn answer(message: &[u8]) -> Option<(String, Vec<IpAddr>)> {
    let packet = Packet::parse(message).ok()?;
    if !packet.has_flags(PacketFlag::RESPONSE) {
        return None;
    }
    let [question] = packet.questions.as_slice() else { return None };
    let name = question.qname.to_string().trim_end_matches('.').to_ascii_lowercase();
    let addresses: Vec<IpAddr> = packet
        .answers
        .iter()
        .filter_map(|record| match &record.rdata {
            RData::A(a) => Some(IpAddr::from(a.address.to_be_bytes())),
            RData::AAAA(a) => Some(IpAddr::from(a.address.to_be_bytes())),
            _ => None,
        })
        .collect();
    (!addresses.is_empty() && !name.is_empty()).then_some((name, addresses))
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
