//! When a new key becomes a coarse one. Asked only when a key is new.

/// Whether a new key must be coarse: the cgroup is over its budget of live keys, or the map is more
/// than 90 % full.
///
/// `inserted` and `removed` are written by one side each (kernel, user space), so neither needs a
/// fetching atomic; `removed` is at times ahead (an entry that user space put in), hence the
/// wrapping difference, read as "none" when negative.
#[inline(always)]
#[must_use]
pub const fn must_be_coarse(cgroup: Tally, per_cgroup: u32, map: Tally, capacity: u32) -> bool {
    let fill_limit = capacity as u64 / 10 * 9 + capacity as u64 % 10 * 9 / 10;
    cgroup.live() >= per_cgroup as u64 || map.live() >= fill_limit
}

/// Keys put in and taken out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// By the kernel.
    pub inserted: u64,
    /// By user space, less what it inserted itself.
    pub removed: u64,
}

impl Tally {
    /// Keys in the map now.
    #[inline(always)]
    #[must_use]
    pub const fn live(self) -> u64 {
        let difference = self.inserted.wrapping_sub(self.removed);
        if difference > i64::MAX as u64 { 0 } else { difference }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: Tally = Tally { inserted: 0, removed: 0 };

    fn live(n: u64) -> Tally {
        Tally { inserted: n + 5, removed: 5 }
    }

    #[test]
    fn the_budget_is_the_number_of_live_keys() {
        assert!(!must_be_coarse(live(3), 4, EMPTY, 1000));
        assert!(must_be_coarse(live(4), 4, EMPTY, 1000));
    }

    #[test]
    fn ninety_percent_of_the_map_is_the_border() {
        assert!(!must_be_coarse(EMPTY, 4, live(229), 256));
        assert!(must_be_coarse(EMPTY, 4, live(230), 256));
        assert!(must_be_coarse(EMPTY, u32::MAX, live(u64::from(u32::MAX)), u32::MAX));
    }

    #[test]
    fn more_removed_than_inserted_is_none() {
        assert_eq!(Tally { inserted: 2, removed: 3 }.live(), 0);
        assert_eq!(Tally { inserted: 2, removed: 0u64.wrapping_sub(7) }.live(), 9);
    }
}
