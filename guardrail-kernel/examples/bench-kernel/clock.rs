//! By the clock: how much longer an operation takes, with empty programs and with ours. The
//! kernel's own statistics would be part of the time, so they are off.
//!
//! A shared machine is now quick, now slow, by far more than what is looked for. But most
//! operations that nothing disturbs take the same time to some 10 ns, and in every round there are
//! such. So rounds without, with empty and with our programs come in turn, each gives the time that
//! a tenth of its operations fell short of, and the middle one of the rounds' differences counts.

use std::time::Instant;

use super::{
    Result,
    net::{Net, Work},
    programs::{Empty, with_ours},
};

/// Operations of a round before those that are measured, and measured.
const WARM_UP: u32 = 50;
const OPERATIONS: usize = 500;
/// Of a round's operations, sorted, the one whose time counts.
const COUNTS: usize = OPERATIONS / 10;

/// Nanoseconds of an undisturbed operation.
fn quick(net: &Net, work: Work) -> Result<f64> {
    net.client(work, |operation| {
        for _ in 0..WARM_UP {
            operation()?;
        }
        let mut took = Vec::with_capacity(OPERATIONS);
        for _ in 0..OPERATIONS {
            let begin = Instant::now();
            operation()?;
            took.push(begin.elapsed());
        }
        let (_, at, _) = took.select_nth_unstable(COUNTS);
        Ok(at.as_nanos() as f64)
    })
}

/// Lower quartile, median and upper quartile.
fn quartiles(values: &mut [f64]) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| values[(values.len() - 1) * quarter / 4])
}

/// Rounds of `time`, which is told what is attached: nothing (0), empty programs (1), ours (2).
/// Gives quartiles of the time without, and of what comes on top with empty programs and with ours.
pub(crate) fn alternate(rounds: usize, mut time: impl FnMut(usize) -> Result<f64>) -> Result<[[f64; 3]; 3]> {
    let mut columns: [Vec<f64>; 3] = Default::default();
    for round in 0..rounds {
        let mut took = [0.0; 3];
        // Which comes first changes, so that a drift of the machine favours none.
        let order = if round % 2 == 0 { [0, 1, 2] } else { [2, 1, 0] };
        for which in order {
            took[which] = time(which)?;
        }
        for (column, value) in columns.iter_mut().zip([took[0], took[1] - took[0], took[2] - took[0]]) {
            column.push(value);
        }
    }
    Ok(columns.map(|mut column| quartiles(&mut column)))
}

/// A difference with its quartiles.
pub(crate) fn cell([low, middle, high]: [f64; 3]) -> String {
    format!("{middle:+.0} ({low:+.0} to {high:+.0})")
}

/// Measures and prints a row.
pub(crate) fn row(net: &Net, name: &str, work: Work, udp: bool, rounds: usize) -> Result<()> {
    let [without, empty, ours] = alternate(rounds, |which| match which {
        0 => quick(net, work),
        1 => {
            let _attached = Empty::attach(udp)?;
            quick(net, work)
        }
        _ => with_ours(udp, None, |_| quick(net, work)),
    })?;
    let (base, more) = (without[1], ours[1]);
    let udp = if udp { "on" } else { "off" };
    println!("{name:<42}{udp:>5}{base:>10.0}{:>26}{:>26}{:>8.3}", cell(empty), cell(ours), base / (base + more));
    Ok(())
}
