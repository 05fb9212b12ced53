//! The kernel programs, as the build script has made them.

/// The programs' object file. Empty in a build without them (`AYA_BUILD_SKIP=1`).
#[cfg(not(guardrail_no_programs))]
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/guardrail"));
/// The programs' object file: this build has none.
#[cfg(guardrail_no_programs)]
pub static OBJECT: &[u8] = &[];

#[cfg(all(test, not(guardrail_no_programs)))]
mod tests {
    use object::{Object as _, ObjectSection as _, SectionKind};

    /// `BPF_STX | BPF_ATOMIC` on a double word and on a word (linux/bpf.h).
    const ATOMICS: [u8; 2] = [0xdb, 0xc3];
    /// `BPF_LD | BPF_DW | BPF_IMM`: the only instruction of two slots.
    const LOAD_64: u8 = 0x18;
    const SLOT: usize = 8;

    #[test]
    fn the_programs_have_no_atomic_instruction_that_linux_5_10_lacks() {
        let file = object::File::parse(super::OBJECT).unwrap();
        let mut additions = 0;
        for section in file.sections().filter(|section| section.kind() == SectionKind::Text) {
            let (code, name) = (section.data().unwrap(), section.name().unwrap());
            let mut at = 0;
            while let Some(slot) = code.get(at..at + SLOT) {
                if ATOMICS.contains(&slot[0]) {
                    // Which one, says the immediate: 0 adds, all others came with 5.12.
                    assert_eq!(slot[4..], [0; 4], "{name}, byte {at:#x}");
                    additions += 1;
                }
                at += if slot[0] == LOAD_64 { 2 * SLOT } else { SLOT };
            }
        }
        assert!(additions > 0, "the programs count");
    }
}
