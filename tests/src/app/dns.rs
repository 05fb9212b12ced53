//! DNS messages of the lab: questions as a stub resolver asks them, answers from a fixed table.

use std::{collections::BTreeMap, net::IpAddr};

use simple_dns::{
    CLASS, Name, Packet, PacketFlag, QTYPE, Question, RCODE, ResourceRecord, TYPE,
    rdata::{A, AAAA, RData},
};

/// The bytes of a question for `name`.
///
/// # Panics
/// `name` is not a domain name: the scenario is wrong.
#[must_use]
pub fn question(id: u16, name: &str, v6: bool) -> Vec<u8> {
    let mut packet = Packet::new_query(id);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    let kind = if v6 { TYPE::AAAA } else { TYPE::A };
    packet.questions.push(Question::new(Name::new(name).expect("a domain name"), kind.into(), CLASS::IN.into(), false));
    packet.build_bytes_vec().expect("a question fits")
}

/// Answers a question from `records`, or `None` if the bytes are no question.
#[must_use]
pub fn answer(message: &[u8], records: &BTreeMap<String, Vec<IpAddr>>) -> Option<Vec<u8>> {
    let query = Packet::parse(message).ok()?;
    let question = query.questions.first()?;
    let name = question.qname.to_string().to_lowercase();
    let mut reply = Packet::new_reply(query.id());
    reply.set_flags(PacketFlag::RECURSION_DESIRED | PacketFlag::RECURSION_AVAILABLE);
    reply.questions.push(question.clone());
    match records.get(name.trim_end_matches('.')) {
        None => *reply.rcode_mut() = RCODE::NameError,
        Some(addresses) => {
            for address in addresses {
                let data = match (address, question.qtype) {
                    (IpAddr::V4(v4), QTYPE::TYPE(TYPE::A)) => RData::A(A { address: (*v4).into() }),
                    (IpAddr::V6(v6), QTYPE::TYPE(TYPE::AAAA)) => RData::AAAA(AAAA { address: (*v6).into() }),
                    _ => continue,
                };
                reply.answers.push(ResourceRecord::new(question.qname.clone(), CLASS::IN, 5, data));
            }
        }
    }
    reply.build_bytes_vec_compressed().ok()
}

/// The addresses in an answer to question `id`; `None` if it is another message.
#[must_use]
pub fn addresses(message: &[u8], id: u16) -> Option<Vec<IpAddr>> {
    let packet = Packet::parse(message).ok()?;
    if packet.id() != id || !packet.has_flags(PacketFlag::RESPONSE) {
        return None;
    }
    Some(
        packet
            .answers
            .iter()
            .filter_map(|r| match &r.rdata {
                RData::A(a) => Some(IpAddr::V4(a.address.into())),
                RData::AAAA(a) => Some(IpAddr::V6(a.address.into())),
                _ => None,
            })
            .collect(),
    )
}

/// A message with the two-byte length that DNS over TCP puts before it.
///
/// # Panics
/// The message is longer than 65,535 bytes.
#[must_use]
pub fn with_length(message: &[u8]) -> Vec<u8> {
    let mut bytes = u16::try_from(message.len()).expect("a DNS message is shorter than 64 KiB").to_be_bytes().to_vec();
    bytes.extend_from_slice(message);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_the_addresses_of_the_family_that_was_asked_for() {
        let records =
            BTreeMap::from([("db.data".to_owned(), vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()])]);
        for (v6, expected) in [(false, "10.0.0.1"), (true, "fd00::1")] {
            let reply = answer(&question(7, "DB.data", v6), &records).unwrap();
            assert_eq!(addresses(&reply, 7), Some(vec![expected.parse().unwrap()]));
            assert_eq!(addresses(&reply, 8), None);
        }
        assert_eq!(addresses(&answer(&question(7, "other", false), &records).unwrap(), 7), Some(vec![]));
    }
}
