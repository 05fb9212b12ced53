//! A small reader of BTF, the kernel's description of its own types: where is this member of this
//! structure?
//!
//! In: the bytes of `/sys/kernel/btf/vmlinux`. Total: broken bytes give an error or "no such
//! member", never a panic. Source: `Documentation/bpf/btf.rst`, `include/uapi/linux/btf.h`.

use std::fs;

use crate::error::KernelError;

/// Where the kernel shows its types.
pub(crate) const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
const TYPE_BYTES: usize = 12;
const MEMBER_BYTES: usize = 12;
/// A path through anonymous members and modifiers is short; more is a cycle.
const MAX_DEPTH: u32 = 16;
/// Members looked at in one search; the largest structures have a few hundred. Anonymous members
/// that lead back to themselves are more.
const MAX_MEMBERS: u32 = 1 << 16;

/// Kinds that matter here (`BTF_KIND_*`).
mod kind {
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const RESTRICT: u32 = 11;
    pub(super) const TYPE_TAG: u32 = 18;
}

/// Where a member lies in its outermost structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    /// Bits from the beginning.
    pub(crate) bit: u32,
}

impl Member {
    /// The byte it begins in.
    pub(crate) const fn byte(self) -> u32 {
        self.bit / 8
    }

    /// Bits before it in that byte (little endian).
    pub(crate) const fn shift(self) -> u32 {
        self.bit % 8
    }
}

/// Parsed BTF: the bytes, and where each type begins.
pub(crate) struct Btf {
    bytes: Vec<u8>,
    /// Position of each type; index 0 is `void` and has none.
    types: Vec<u32>,
    /// Which of them are structures: one in ten, and every look-up goes over them.
    structures: Vec<usize>,
    strings: std::ops::Range<usize>,
}

/// One type's head.
#[derive(Clone, Copy)]
struct Type {
    at: usize,
    name: u32,
    kind: u32,
    vlen: usize,
    /// `kind_flag`: member offsets carry a bit field size in their top byte.
    flag: bool,
    /// Size, or the type referred to.
    other: u32,
}

impl Btf {
    /// The running kernel's.
    pub(crate) fn running() -> Result<Self, KernelError> {
        let bytes = fs::read(VMLINUX).map_err(|source| KernelError::NoBtf { path: VMLINUX.into(), source })?;
        Self::parse(bytes).map_err(|reason| KernelError::BadBtf { reason })
    }

    /// Finds the types in the bytes.
    pub(crate) fn parse(bytes: Vec<u8>) -> Result<Self, String> {
        if half(&bytes, 0) != Some(MAGIC) {
            return Err("it does not begin with the BTF magic of this machine's byte order".to_owned());
        }
        let field = |at: usize| word(&bytes, at).map(|w| w as usize).ok_or_else(|| "its header is cut".to_owned());
        let (header, type_at, type_len, string_at, string_len) =
            (field(4)?, field(8)?, field(12)?, field(16)?, field(20)?);
        let section = |at: usize, len: usize, what: &str| {
            let from = header.checked_add(at);
            let to = from.and_then(|from| from.checked_add(len)).filter(|to| *to <= bytes.len());
            from.zip(to).map(|(from, to)| from..to).ok_or_else(|| format!("its {what} lie outside the file"))
        };
        let type_section = section(type_at, type_len, "types")?;
        let strings = section(string_at, string_len, "strings")?;
        let (mut types, mut structures) = (vec![0], Vec::new());
        let mut at = type_section.start;
        while at < type_section.end {
            let info = word(&bytes, at + 4).ok_or_else(|| "a type is cut".to_owned())?;
            if kind_of(info) == kind::STRUCT {
                structures.push(types.len());
            }
            types.push(u32::try_from(at).map_err(|_| "it is larger than 4 GiB".to_owned())?);
            at += TYPE_BYTES + tail(info).ok_or_else(|| format!("type {} is of an unknown kind", types.len() - 1))?;
        }
        if at != type_section.end {
            return Err("its last type is cut".to_owned());
        }
        Ok(Self { bytes, types, structures, strings })
    }

    /// Where `path` (`member`, or `member.member`) lies in `struct name`. Anonymous structures and
    /// unions on the way need not be named.
    pub(crate) fn member(&self, name: &str, path: &str) -> Option<Member> {
        let mut left = MAX_MEMBERS;
        self.structures.iter().find_map(|id| {
            let t = self.get(*id)?;
            if !self.is_named(t.name, name.as_bytes()) {
                return None;
            }
            self.walk(t, path, &mut left)
        })
    }

    fn walk(&self, mut t: Type, path: &str, left: &mut u32) -> Option<Member> {
        let mut bit = 0u32;
        for part in path.split('.') {
            let (offset, of) = self.find(t, part.as_bytes(), MAX_DEPTH, left)?;
            bit = bit.checked_add(offset)?;
            // The last part's type may be anything.
            t = self.resolve(of).unwrap_or(t);
        }
        Some(Member { bit })
    }

    /// Offset in bits and type of a member, looked for through anonymous members too.
    fn find(&self, t: Type, name: &[u8], depth: u32, left: &mut u32) -> Option<(u32, u32)> {
        let depth = depth.checked_sub(1)?;
        if t.kind != kind::STRUCT && t.kind != kind::UNION {
            return None;
        }
        (0..t.vlen).find_map(|i| {
            *left = left.checked_sub(1)?;
            let at = t.at + TYPE_BYTES + i * MEMBER_BYTES;
            let (member_name, of, raw) =
                (word(&self.bytes, at)?, word(&self.bytes, at + 4)?, word(&self.bytes, at + 8)?);
            let offset = if t.flag { raw & 0x00ff_ffff } else { raw };
            if self.is_named(member_name, b"") {
                let (inner, of) = self.find(self.resolve(of)?, name, depth, left)?;
                return Some((offset.checked_add(inner)?, of));
            }
            self.is_named(member_name, name).then_some((offset, of))
        })
    }

    /// The type behind typedefs and qualifiers.
    fn resolve(&self, id: u32) -> Option<Type> {
        let mut id = id;
        for _ in 0..MAX_DEPTH {
            let t = self.get(id as usize)?;
            match t.kind {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => id = t.other,
                _ => return Some(t),
            }
        }
        None
    }

    fn get(&self, id: usize) -> Option<Type> {
        let at = *self.types.get(id).filter(|_| id != 0)? as usize;
        let info = word(&self.bytes, at + 4)?;
        Some(Type {
            at,
            name: word(&self.bytes, at)?,
            kind: kind_of(info),
            vlen: (info & 0xffff) as usize,
            flag: info >> 31 != 0,
            other: word(&self.bytes, at + 8)?,
        })
    }

    /// Whether the string at `offset` is `name`.
    fn is_named(&self, offset: u32, name: &[u8]) -> bool {
        let string = self.bytes.get(self.strings.clone()).and_then(|strings| strings.get(offset as usize..));
        let rest = string.and_then(|string| string.strip_prefix(name));
        rest.is_some_and(|rest| rest.first().is_none_or(|end| *end == 0))
    }
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().copied().map(u16::from_ne_bytes)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().copied().map(u32::from_ne_bytes)
}

const fn kind_of(info: u32) -> u32 {
    info >> 24 & 0x1f
}

/// Bytes that follow a type's head.
const fn tail(info: u32) -> Option<usize> {
    let vlen = (info & 0xffff) as usize;
    match kind_of(info) {
        1 | 14 | 17 => Some(4),
        2 | 7..=12 | 16 | 18 => Some(0),
        3 => Some(12),
        kind::STRUCT | kind::UNION | 15 | 19 => Some(vlen * 12),
        6 | 13 => Some(vlen * 8),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `struct s { int a; union { struct { int b; int c:3, d:4; }; } ; struct t { int e; } t; }` by
    /// hand.
    fn sample() -> Vec<u8> {
        let strings = b"\0s\0a\0b\0c\0d\0t\0e\0int\0";
        let at = |name: &str| {
            strings
                .windows(name.len() + 2)
                .position(|w| w[0] == 0 && w[name.len() + 1] == 0 && &w[1..=name.len()] == name.as_bytes())
                .expect("a name") as u32
                + 1
        };
        let mut types: Vec<u32> = Vec::new();
        // 1: int
        types.extend([at("int"), 1 << 24, 4, 32]);
        // 2: anonymous struct { int b; int c:3; int d:4 } with bit fields
        types.extend([0, 1 << 31 | 4 << 24 | 3, 8, at("b"), 1, 0, at("c"), 1, 3 << 24 | 32, at("d"), 1, 4 << 24 | 35]);
        // 3: anonymous union { 2 }
        types.extend([0, 5 << 24 | 1, 8, 0, 2, 0]);
        // 4: struct t { int e }, 5: const 4
        types.extend([at("t"), 4 << 24 | 1, 4, at("e"), 1, 0]);
        types.extend([0, 10 << 24, 4]);
        // 6: struct s
        types.extend([at("s"), 4 << 24 | 3, 16, at("a"), 1, 0, 0, 3, 32, at("t"), 5, 96]);
        let types: Vec<u8> = types.into_iter().flat_map(u32::to_ne_bytes).collect();
        let mut bytes = Vec::new();
        bytes.extend(MAGIC.to_ne_bytes());
        bytes.extend([1, 0]);
        for field in [24, 0, types.len() as u32, types.len() as u32, strings.len() as u32] {
            bytes.extend(field.to_ne_bytes());
        }
        bytes.extend(types);
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn members_are_found_through_anonymous_members_and_bit_fields() {
        let btf = Btf::parse(sample()).expect("parses");
        assert_eq!(btf.member("s", "a"), Some(Member { bit: 0 }));
        assert_eq!(btf.member("s", "b"), Some(Member { bit: 32 }));
        assert_eq!(btf.member("s", "d"), Some(Member { bit: 67 }));
        assert_eq!((btf.member("s", "d").expect("d").byte(), btf.member("s", "d").expect("d").shift()), (8, 3));
        assert_eq!(btf.member("s", "t.e"), Some(Member { bit: 96 }));
        assert_eq!(btf.member("s", "nothing"), None);
        assert_eq!(btf.member("nothing", "a"), None);
        assert_eq!(btf.member("s", "a.b.c"), None);
    }

    #[test]
    fn anonymous_members_that_lead_to_themselves_end() {
        // `struct s` with 64 anonymous members, each of the type of a union of 64 anonymous members
        // of its own type: 64^16 ways to nowhere.
        let mut types: Vec<u32> = Vec::new();
        for name in [0, 1] {
            types.extend([name, 4 << 24 | 64, 8]);
            types.extend([0, 1, 0].repeat(64));
        }
        let types: Vec<u8> = types.into_iter().flat_map(u32::to_ne_bytes).collect();
        let mut bytes = [MAGIC.to_ne_bytes(), [1, 0]].concat();
        for field in [24, 0, types.len() as u32, types.len() as u32, 3] {
            bytes.extend(field.to_ne_bytes());
        }
        bytes.extend(types);
        bytes.extend(b"\0s\0");
        let btf = Btf::parse(bytes).expect("parses");
        assert_eq!(btf.member("s", "x"), None);
    }

    #[test]
    fn the_running_kernel_has_a_socket_family() {
        let Ok(bytes) = fs::read(VMLINUX) else {
            assert!(std::env::var_os("CI").is_none(), "no {VMLINUX} on the CI machine");
            eprintln!("not run: no {VMLINUX}");
            return;
        };
        let btf = Btf::parse(bytes).expect("parses");
        assert_eq!(btf.member("sock", "__sk_common.skc_family"), Some(Member { bit: 128 }));
        assert_eq!(btf.member("sock", "no_such_member"), None);
    }

    proptest! {
        #[test]
        fn broken_bytes_never_panic(changes in proptest::collection::vec((0usize..400, any::<u8>()), 1..8), cut in 0usize..400) {
            let mut bytes = sample();
            let length = bytes.len();
            for (at, byte) in changes {
                bytes[at % length] = byte;
            }
            bytes.truncate(length.saturating_sub(cut % 40));
            if let Ok(btf) = Btf::parse(bytes) {
                let _ = (btf.member("s", "d"), btf.member("s", "t.e"), btf.member("t", "e"));
            }
        }
    }
}
