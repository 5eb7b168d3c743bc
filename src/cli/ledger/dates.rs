//! Dates and times on the command line, in the ledger's time zone.

use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;

use crate::cli::failure::Failure;
use crate::cli::terminal;

/// The time zone of dates.
#[derive(Clone, Debug)]
pub(in crate::cli) struct Zone {
    shown: TimeZone,
    /// Why a date without an offset can't be taken, if it can't.
    unclear: Option<String>,
}

impl Zone {
    /// The zone that was asked for, else the configuration's.
    ///
    /// Where neither is there or known, times are shown in UTC, each with its offset, and dates are
    /// refused: seven hours more or less would be another day's refunds.
    ///
    /// # Errors
    /// The one that was asked for is unknown.
    pub(in crate::cli) fn choose(
        asked: Option<&str>,
        configured: Option<&str>,
    ) -> Result<Self, Failure> {
        let (shown, unclear) = match (asked, configured) {
            (Some(name), _) => {
                let zone = TimeZone::get(name).map_err(|_| {
                    Failure::Usage(format!(
                        "there is no time zone `{}` here: write an IANA name, such as Asia/Ho_Chi_Minh \
                         or UTC; other names than UTC need tzdata installed",
                        terminal::escape(name)
                    ))
                })?;
                (zone, None)
            }
            (None, Some(name)) => match TimeZone::get(name) {
                Ok(zone) => (zone, None),
                Err(_) => {
                    let why = format!("the ledger's time zone, {name}, is not known here");
                    (TimeZone::UTC, Some(why))
                }
            },
            (None, None) => {
                let why = "the ledger's time zone is not known without its configuration";
                (TimeZone::UTC, Some(why.to_owned()))
            }
        };
        Ok(Self { shown, unclear })
    }

    /// What times are shown in.
    pub(in crate::cli) fn shown(&self) -> &TimeZone {
        &self.shown
    }

    /// The first moment of a `--from`: a date's midnight, or the time itself.
    ///
    /// # Errors
    /// It is neither, or the zone is needed and not known.
    pub(super) fn from(&self, text: &str) -> Result<Timestamp, Failure> {
        match Written::read("--from", text)? {
            Written::At(at) => Ok(at),
            Written::Date(date) => self.midnight("--from", date),
            Written::Time(time) => self.at("--from", time),
        }
    }

    /// The first moment that a `--to` leaves out: the midnight at a date's end, or the time itself.
    ///
    /// # Errors
    /// It is neither, or the zone is needed and not known.
    pub(super) fn until(&self, text: &str) -> Result<Timestamp, Failure> {
        match Written::read("--to", text)? {
            Written::At(at) => Ok(at),
            Written::Date(date) => {
                let next = date.tomorrow().map_err(|_| unreadable("--to", text))?;
                self.midnight("--to", next)
            }
            Written::Time(time) => self.at("--to", time),
        }
    }

    fn midnight(&self, option: &str, date: Date) -> Result<Timestamp, Failure> {
        self.at(option, date.at(0, 0, 0, 0))
    }

    fn at(&self, option: &str, time: DateTime) -> Result<Timestamp, Failure> {
        if let Some(why) = &self.unclear {
            return Err(Failure::Usage(format!(
                "{option}: {why}: name the configuration (--config FILE) or a zone (--time-zone \
                 Asia/Ho_Chi_Minh), or write a time with its offset, such as 2026-11-23T00:00:00+07:00"
            )));
        }
        let at = self.shown.to_timestamp(time);
        at.map_err(|_| unreadable(option, &time.to_string()))
    }
}

/// What was written.
enum Written {
    /// With an offset: a moment.
    At(Timestamp),
    Date(Date),
    Time(DateTime),
}

impl Written {
    fn read(option: &str, text: &str) -> Result<Self, Failure> {
        if let Ok(at) = text.parse() {
            return Ok(Self::At(at));
        }
        let date_only = text.len() <= "2026-11-23".len();
        let written = if date_only {
            text.parse().ok().map(Self::Date)
        } else {
            text.parse().ok().map(Self::Time)
        };
        written.ok_or_else(|| unreadable(option, text))
    }
}

fn unreadable(option: &str, text: &str) -> Failure {
    Failure::Usage(format!(
        "{option}: `{}` is no date such as 2026-11-23 and no time such as 2026-11-23T08:00",
        terminal::escape(text)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone() -> Zone {
        Zone::choose(None, Some("Asia/Ho_Chi_Minh")).unwrap()
    }

    fn shown(at: Result<Timestamp, Failure>) -> String {
        at.map_or_else(|failure| failure.to_string(), |at| at.to_string())
    }

    #[test]
    fn a_date_is_the_zones_and_the_last_one_counts_whole() {
        assert_eq!(shown(zone().from("2026-11-01")), "2026-10-31T17:00:00Z");
        assert_eq!(shown(zone().until("2026-11-30")), "2026-11-30T17:00:00Z");
        let asked = Zone::choose(Some("UTC"), Some("Asia/Ho_Chi_Minh")).unwrap();
        assert_eq!(shown(asked.from("2026-11-01")), "2026-11-01T00:00:00Z");
    }

    #[test]
    fn a_time_is_a_moment_on_either_side() {
        for text in [
            "2026-11-23T08:00",
            "2026-11-23 08:00:00",
            "2026-11-23T08:00:00+07:00",
        ] {
            assert_eq!(shown(zone().from(text)), "2026-11-23T01:00:00Z", "{text}");
            assert_eq!(shown(zone().until(text)), "2026-11-23T01:00:00Z", "{text}");
        }
    }

    #[test]
    fn what_is_neither_is_refused() {
        for text in [
            "",
            "yesterday",
            "23/11/2026",
            "2026-11-31",
            "2026-11-23T25:00",
            "20261",
            "9999-12-31",
        ] {
            let told = shown(zone().until(text));
            assert!(told.starts_with("--to: `"), "{text}: {told}");
        }
    }

    #[test]
    fn a_date_without_a_zone_is_not_guessed() {
        for zone in [
            Zone::choose(None, None).unwrap(),
            Zone::choose(None, Some("Nowhere/At_All")).unwrap(),
        ] {
            assert_eq!(zone.shown(), &TimeZone::UTC);
            let told = shown(zone.from("2026-11-23"));
            assert!(told.contains("--time-zone"), "{told}");
            assert_eq!(
                shown(zone.from("2026-11-23T00:00:00Z")),
                "2026-11-23T00:00:00Z"
            );
        }
        let told = Zone::choose(Some("Mars/Olympus"), None)
            .unwrap_err()
            .to_string();
        assert!(told.contains("Mars/Olympus"), "{told}");
    }
}
