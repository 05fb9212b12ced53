//! What `vm-test` prints, and what makes it fail.

use std::{collections::BTreeSet, fmt::Write as _};

use super::{
    INSTRUCTION_CEILING,
    machine::{Outcome, Report},
    suite::Test,
};

/// One cell of the table; `None` is a test that the guest did not get to.
pub(super) fn cell(outcome: Option<&Outcome>) -> String {
    match outcome {
        Some(Outcome::Passed(took)) => format!("ok {:.1} s", took.as_secs_f64()),
        Some(Outcome::Failed(code, took)) => format!("FAILED ({code}) {:.1} s", took.as_secs_f64()),
        Some(Outcome::TimedOut) => "TIMED OUT".to_owned(),
        None => "NO RESULT".to_owned(),
    }
}

/// Tests × kernels, then the verifier's instruction count programs × kernels.
pub(super) fn table(tests: &[Test], results: &[(&str, Report)]) -> String {
    let mut rows = vec![header("test", results, |report| report.release.clone())];
    for (index, test) in tests.iter().enumerate() {
        let cells = results.iter().map(|(_, report)| cell(report.outcomes.get(&index)));
        rows.push(std::iter::once(format!("{}::{}", test.target, test.name)).chain(cells).collect());
    }
    let seconds = |of: fn(&Report) -> std::time::Duration| {
        results.iter().map(move |(_, report)| format!("{:.1} s", of(report).as_secs_f64()))
    };
    rows.push(std::iter::once("(boot)".to_owned()).chain(seconds(|report| report.boot)).collect());
    rows.push(std::iter::once("(boot and all tests)".to_owned()).chain(seconds(|report| report.total)).collect());
    let mut text = aligned(&rows);

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
pub(super) fn problems(tests: &[Test], results: &[(&str, Report)]) -> Vec<String> {
    let mut problems = Vec::new();
    for (version, report) in results {
        problems.extend(report.broken.iter().map(|what| format!("{version}: the guest: {what}")));
        for (index, test) in tests.iter().enumerate() {
            let outcome = report.outcomes.get(&index);
            if !matches!(outcome, Some(Outcome::Passed(_))) {
                problems.push(format!("{version}: {}::{}: {}", test.target, test.name, cell(outcome)));
            }
        }
        for (program, count) in &report.instructions {
            if *count > INSTRUCTION_CEILING {
                problems.push(format!("{version}: the verifier walks {count} instructions of {program}, over the ceiling of {INSTRUCTION_CEILING}"));
            }
        }
        if report.done && report.instructions.is_empty() {
            problems.push(format!("{version}: no program was loaded, so there is no instruction count"));
        }
    }
    problems
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
        assert!(problems(&[test("a")], &results).is_empty());
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
        assert_eq!(problems(&tests, &[("6.1", report)]).len(), 5);
    }

    #[test]
    fn a_guest_that_loads_nothing_is_a_problem() {
        let mut report = good();
        report.instructions.clear();
        assert_eq!(problems(&[test("a")], &[("6.1", report)]).len(), 1);
    }
}
