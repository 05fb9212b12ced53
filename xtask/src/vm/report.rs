//! What `vm-test` prints, and what makes it fail.

use std::{collections::BTreeSet, fmt::Write as _};

use guardrail_common::VERIFIER_INSTRUCTION_CEILING as INSTRUCTION_CEILING;

use super::{
    machine::{Lines, Outcome, Report},
    suite::Test,
};

/// Tests × kernels, then the verifier's instruction count programs × kernels.
pub(super) fn table(tests: &[Test], results: &[(&str, Report)]) -> String {
    let mut rows = vec![header("test", results, |report| report.release.clone())];
    for (index, test) in tests.iter().enumerate() {
        let cells = results.iter().map(|(_, report)| report.cell(index));
        rows.push(std::iter::once(format!("{}::{}", test.target, test.name)).chain(cells).collect());
    }
    let seconds = |of: fn(&Report) -> std::time::Duration| {
        results.iter().map(move |(_, report)| format!("{:.1} s", of(report).as_secs_f64()))
    };
    rows.push(std::iter::once("(boot)".to_owned()).chain(seconds(|report| report.boot)).collect());
    rows.push(std::iter::once("(boot and all tests)".to_owned()).chain(seconds(|report| report.total)).collect());
    let mut text = aligned(&rows);
    for (version, report) in results {
        for (index, why) in &report.not_run {
            let name = tests.get(*index).map_or("", |test| &test.name);
            let _ = writeln!(text, "{version}: {name} was not run: {why}");
        }
    }

    let mut rows = vec![header("program: instructions the verifier walked", results, |_| String::new())];
    for program in programs(results) {
        let counts = results
            .iter()
            .map(|(_, report)| report.instructions.get(program).map_or_else(|| "-".to_owned(), u32::to_string));
        rows.push(std::iter::once(program.to_owned()).chain(counts).collect());
    }
    text.push('\n');
    text += &aligned(&rows);
    let _ = writeln!(text, "(ceiling: {INSTRUCTION_CEILING})");
    text
}

/// One sentence for each thing that must not be.
pub(super) fn problems(tests: &[Test], results: &[(&str, Report)], reference: Option<(&str, &Lines)>) -> Vec<String> {
    let mut problems = Vec::new();
    for (version, report) in results {
        problems.extend(report.broken.iter().map(|what| format!("{version}: the guest: {what}")));
        for (index, test) in tests.iter().enumerate() {
            let outcome = report.outcomes.get(&index);
            if !matches!(outcome, Some(Outcome::Passed(_))) {
                problems.push(format!("{version}: {}::{}: {}", test.target, test.name, report.cell(index)));
            }
        }
        for (program, count) in &report.instructions {
            if *count > INSTRUCTION_CEILING {
                problems.push(format!("{version}: the verifier walks {count} instructions of {program}, over the ceiling of {INSTRUCTION_CEILING}"));
            }
        }
        if let Some((reference, lines)) = reference {
            for ((program, place), count) in lines {
                let kept = report.lines.get(&(program.clone(), place.clone())).copied().unwrap_or(0);
                if kept < *count && is_everywhere(version, program, place) && report.instructions.contains_key(program)
                {
                    problems.push(format!("{version}: the verifier drops {place} from {program} ({kept} of {count} left), which {reference} keeps"));
                }
            }
        }
        if report.done && report.instructions.is_empty() {
            problems.push(format!("{version}: no program was loaded, so there is no instruction count"));
        }
    }
    problems
}

/// Whether a line belongs to the programs, and to a part of them that is the same on every kernel:
/// how a socket names its cgroup (`socket.rs`) is not, and before Linux 5.12 nothing is left to do
/// for the second of the TCP programs.
fn is_everywhere(version: &str, program: &str, place: &str) -> bool {
    let is_empty_there = version == "5.10" && (program == "tcp_missed" || place.starts_with("ebpf/src/turn.rs:"));
    !(place.starts_with('/') || place.starts_with("ebpf/src/socket.rs:") || is_empty_there)
}

fn programs<'a>(results: &'a [(&str, Report)]) -> BTreeSet<&'a str> {
    results.iter().flat_map(|(_, report)| report.instructions.keys().map(String::as_str)).collect()
}

fn header(first: &str, results: &[(&str, Report)], detail: impl Fn(&Report) -> String) -> Vec<String> {
    let kernels = results.iter().map(|(version, report)| match detail(report) {
        detail if detail.is_empty() => (*version).to_owned(),
        detail => detail,
    });
    std::iter::once(first.to_owned()).chain(kernels).collect()
}

fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in rows {
        let line: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(line.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn test(name: &str) -> Test {
        Test { binary: "/t".into(), target: "kernel".to_owned(), name: name.to_owned() }
    }

    fn good() -> Report {
        let mut report = Report { release: "6.1.0".to_owned(), done: true, ..Report::default() };
        report.outcomes.insert(0, Outcome::Passed(Duration::from_millis(1500)));
        report.instructions.insert("tcp_state".to_owned(), INSTRUCTION_CEILING);
        report
    }

    #[test]
    fn a_good_run_has_no_problems_and_a_full_table() {
        let results = [("6.1", good())];
        assert!(problems(&[test("a")], &results, None).is_empty());
        let table = table(&[test("a")], &results);
        assert!(table.contains("kernel::a"), "{table}");
        assert!(table.contains("ok 1.5 s"), "{table}");
        assert!(table.contains("tcp_state"), "{table}");
    }

    #[test]
    fn each_kind_of_failure_is_a_problem() {
        let mut report = good();
        report.outcomes.insert(1, Outcome::Failed(101, Duration::ZERO));
        report.outcomes.insert(2, Outcome::TimedOut);
        report.instructions.insert("big".to_owned(), INSTRUCTION_CEILING + 1);
        report.broken.push("no BTF".to_owned());
        let tests = ["a", "b", "c", "never-ran"].map(test);
        assert_eq!(problems(&tests, &[("6.1", report)], None).len(), 5);
    }

    #[test]
    fn a_line_that_only_this_kernel_drops_is_a_problem() {
        let line = |place: &str| ("tcp_state".to_owned(), place.to_owned());
        let reference = Lines::from([
            (line("ebpf/src/udp.rs:1:2"), 2),
            (line("ebpf/src/socket.rs:3:4"), 1),
            (line("/core/src/x.rs:5:6"), 1),
        ]);
        let mut report = good();
        report.lines.insert(line("ebpf/src/udp.rs:1:2"), 1);
        let dropped = problems(&[test("a")], &[("6.1", report)], Some(("6.12", &reference)));
        assert_eq!(dropped.len(), 1, "{dropped:?}");
        assert!(dropped[0].contains("ebpf/src/udp.rs:1:2"), "{dropped:?}");
        let mut report = good();
        report.lines.insert(line("ebpf/src/udp.rs:1:2"), 2);
        assert!(problems(&[test("a")], &[("6.1", report)], Some(("6.12", &reference))).is_empty());
    }

    #[test]
    fn a_guest_that_loads_nothing_is_a_problem() {
        let mut report = good();
        report.instructions.clear();
        assert_eq!(problems(&[test("a")], &[("6.1", report)], None).len(), 1);
    }
}
