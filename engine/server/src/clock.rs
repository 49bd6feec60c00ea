//! Dates for templates: `strftime` in UTC, the conversions chat templates use.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = [
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
];

/// Seconds since 1970.
pub(crate) fn unix_s() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

/// Now, in `format`.
pub(crate) fn strftime_now(format: &str) -> String {
    strftime(format, unix_s())
}

/// `2026-01-31T12:00:00Z`
pub(crate) fn rfc3339(unix_s: u64) -> String {
    strftime("%Y-%m-%dT%H:%M:%SZ", unix_s)
}

fn strftime(format: &str, unix_s: u64) -> String {
    let (days, second) = (unix_s / 86_400, unix_s % 86_400);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let (year, month, day) = civil(days);
    let (month_name, day_name) = (MONTHS[month as usize - 1], DAYS[(days % 7) as usize]);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut conversion = chars.next();
        let padded = conversion != Some('-');
        if !padded {
            conversion = chars.next();
        }
        let mut number = |value: u64| {
            let _ = if padded {
                write!(out, "{value:02}")
            } else {
                write!(out, "{value}")
            };
        };
        match conversion {
            Some('d') => number(day),
            Some('m') => number(month),
            Some('y') => number(year % 100),
            Some('H') => number(hour),
            Some('I') => number((hour + 11) % 12 + 1),
            Some('M') => number(minute),
            Some('S') => number(second),
            Some('Y') => number(year),
            Some('p') => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            Some('B') => out.push_str(month_name),
            Some('b') => out.push_str(&month_name[..3]),
            Some('A') => out.push_str(day_name),
            Some('a') => out.push_str(&day_name[..3]),
            Some('Z') => out.push_str("UTC"),
            Some('F') => out.push_str(&strftime("%Y-%m-%d", unix_s)),
            Some('T') => out.push_str(&strftime("%H:%M:%S", unix_s)),
            Some('%') => out.push('%'),
            Some(other) => out.extend(['%', other]),
            None => out.push('%'),
        }
    }
    out
}

/// Year, month and day of a number of days since 1970 (Howard Hinnant, "chrono-compatible low-level date algorithms").
fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_dates() {
        for (unix_s, format, expected) in [
            (0, "%d %b %Y %H:%M:%S %A", "01 Jan 1970 00:00:00 Thursday"),
            (951_782_400, "%Y-%m-%d", "2000-02-29"),
            (1_735_689_599, "%B %-d, %Y %I %p", "December 31, 2024 11 PM"),
            (
                1_767_225_600,
                "%F %T %a 100%% %q %",
                "2026-01-01 00:00:00 Thu 100% %q %",
            ),
        ] {
            assert_eq!(strftime(format, unix_s), expected);
        }
    }
}
