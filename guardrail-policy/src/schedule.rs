//! How often a CronJob runs, as far as its schedule says.
//!
//! In: `spec.schedule` (five fields, or a name like `@monthly`). Out: the longest time between two
//! runs. A schedule that is not understood says nothing.

use std::time::Duration;

const DAY_MINUTES: u32 = 24 * 60;
/// A leap day comes once in eight years at least.
const DAYS: i64 = 8 * 366 + 1;
/// The first of January of 2024, in days since 1970.
const FIRST: i64 = 19_723;
const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// The longest time between two runs; `None` if the schedule is not understood, or never comes.
#[must_use]
pub(crate) fn longest_pause(schedule: &str) -> Option<Duration> {
    if let Some(every) = schedule.trim().strip_prefix("@every ") {
        return every_so_often(every.trim());
    }
    // A time zone moves the runs, and not the pauses between them but for an hour twice a year.
    let named = match without_zone(schedule.trim()) {
        "@yearly" | "@annually" => "0 0 1 1 *",
        "@monthly" => "0 0 1 * *",
        "@weekly" => "0 0 * * 0",
        "@daily" | "@midnight" => "0 0 * * *",
        "@hourly" => "0 * * * *",
        text => text,
    };
    let fields: Vec<&str> = named.split_whitespace().collect();
    let [minute, hour, day, month, weekday] = fields.as_slice() else { return None };
    let minutes = field(minute, 0, 59, &[])?;
    let hours = field(hour, 0, 23, &[])?;
    let days = field(day, 1, 31, &[])?;
    let months = field(month, 1, 12, &MONTHS)?;
    // Sunday is 0 and 7.
    let weekdays = field(weekday, 0, 7, &WEEKDAYS)?;
    let weekdays = if weekdays.has(7) { weekdays.with(0) } else { weekdays };
    let runs_on = |at: i64| {
        let (of_month, of_year) = date(at);
        // The first of January of 1970 was a Thursday.
        let of_week = u32::try_from((at + 4).rem_euclid(7)).unwrap_or(0);
        let (by_date, by_week) = (days.has(of_month), weekdays.has(of_week));
        // Either day will do where both are said.
        let is_day = if days.any || weekdays.any { by_date && by_week } else { by_date || by_week };
        months.has(of_year) && is_day
    };
    let times: Vec<u32> = (0..DAY_MINUTES).filter(|at| hours.has(at / 60) && minutes.has(at % 60)).collect();
    let (first, last) = (i64::from(*times.first()?), i64::from(*times.last()?));
    let within = times.windows(2).map(|pair| i64::from(pair[1] - pair[0])).max().unwrap_or(0);
    let on: Vec<i64> = (FIRST..FIRST + DAYS).filter(|at| runs_on(*at)).collect();
    let between = on.windows(2).map(|pair| (pair[1] - pair[0]) * i64::from(DAY_MINUTES) + first - last).max()?;
    Some(Duration::from_secs(u64::try_from(between.max(within)).ok()? * 60))
}

/// The schedule behind `TZ=ZONE` or `CRON_TZ=ZONE`.
fn without_zone(text: &str) -> &str {
    let zone = ["TZ=", "CRON_TZ="].iter().find_map(|prefix| text.strip_prefix(prefix));
    zone.and_then(|rest| rest.split_once(' ')).map_or(text, |(_, schedule)| schedule.trim())
}

/// A duration as Go writes it, like `36h` or `1h30m`, of hours, minutes and seconds.
fn every_so_often(text: &str) -> Option<Duration> {
    let (mut all, mut number) = (0_u64, String::new());
    for c in text.chars() {
        let unit = match c {
            '0'..='9' => {
                number.push(c);
                continue;
            }
            'h' => 3_600,
            'm' => 60,
            's' => 1,
            _ => return None,
        };
        let count: u64 = std::mem::take(&mut number).parse().ok()?;
        all = all.checked_add(count.checked_mul(unit)?)?;
    }
    (number.is_empty() && all > 0).then_some(Duration::from_secs(all))
}

/// Values of a field.
#[derive(Clone, Copy)]
struct Values {
    bits: u64,
    /// `*` or `?`: it says nothing.
    any: bool,
}

impl Values {
    fn has(self, value: u32) -> bool {
        self.bits & (1 << value) != 0
    }

    fn with(self, value: u32) -> Self {
        Self { bits: self.bits | 1 << value, ..self }
    }
}

fn field(text: &str, least: u32, most: u32, names: &[&str]) -> Option<Values> {
    let value = |text: &str| {
        let lower = text.to_ascii_lowercase();
        // Months count from 1, weekdays from 0.
        let named = names.iter().position(|name| *name == lower).and_then(|at| u32::try_from(at).ok());
        named.map(|at| at + least).or_else(|| text.parse().ok()).filter(|value| (least..=most).contains(value))
    };
    let mut values = Values { bits: 0, any: false };
    for part in text.split(',') {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, Some(step.parse::<usize>().ok().filter(|step| *step > 0)?)),
            None => (part, None),
        };
        let (from, to) = match range.split_once('-') {
            _ if range == "*" || range == "?" => {
                values.any |= step.is_none_or(|step| step == 1);
                (least, most)
            }
            Some((from, to)) => (value(from)?, value(to)?),
            None => (value(range)?, if step.is_some() { most } else { value(range)? }),
        };
        if from > to {
            return None;
        }
        (from..=to).step_by(step.unwrap_or(1)).for_each(|at| values = values.with(at));
    }
    Some(values)
}

/// Day of the month and month of a day since 1970 (Gregorian, by Hinnant's algorithm).
fn date(days: i64) -> (u32, u32) {
    let shifted = days + 719_468;
    let of_era = shifted.rem_euclid(146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (u32::try_from(day).unwrap_or(0), u32::try_from(month).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_pause_of_a_schedule_is_what_a_span_has_to_hold() {
        for (schedule, hours) in [
            ("*/15 * * * *", 0.25),
            ("@hourly", 1.0),
            ("0 3 * * *", 24.0),
            ("0 8-18 * * *", 14.0),
            ("0 3 * * 1-5", 72.0),
            ("30 2 * * SUN", 168.0),
            ("30 2 * * 7", 168.0),
            ("0 3 1 * *", 31.0 * 24.0),
            ("@monthly", 31.0 * 24.0),
            ("0 0 1 JAN,jul *", 184.0 * 24.0),
            ("@yearly", 366.0 * 24.0),
            ("0 0 29 2 *", 1_461.0 * 24.0),
            // The first of a month, or a Monday.
            ("0 0 1 * 1", 168.0),
            // `*/1` says no more than `*`.
            ("0 0 */1 * 1", 168.0),
            ("0 0 1 * */1", 31.0 * 24.0),
            ("TZ=Europe/Berlin 0 3 1 * *", 31.0 * 24.0),
            ("CRON_TZ=UTC @monthly", 31.0 * 24.0),
            ("@every 720h", 720.0),
            ("@every 1h30m", 1.5),
        ] {
            let pause = longest_pause(schedule).unwrap_or_else(|| panic!("{schedule}"));
            assert!((pause.as_secs_f64() / 3_600.0 - hours).abs() < 1e-9, "{schedule}: {pause:?}");
        }
    }

    #[test]
    fn what_is_no_schedule_says_nothing() {
        for wrong in [
            "",
            "* * * *",
            "60 * * * *",
            "* * * * * *",
            "a * * * *",
            "5-1 * * * *",
            "*/0 * * * *",
            "@often",
            "0 0 31 2 *",
            "- * * * *",
            "@every",
            "@every 5",
            "@every -5h",
            "@every 0s",
            "TZ=UTC",
        ] {
            assert_eq!(longest_pause(wrong), None, "{wrong:?}");
        }
    }
}
