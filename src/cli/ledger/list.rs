//! `tikigate ledger list` and `show`.

use serde_json::json;

use super::Format;
use super::dates::Zone;
use super::pages::{Wanted, fetch, find};
use super::record::{understand, understand_all};
use super::text::Writer;
use crate::cli::admin_client::AdminClient;
use crate::cli::failure::Failure;
use crate::cli::terminal;

/// `ledger list`
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tikigate ledger list --state unknown\n  \
    tikigate ledger list --reference 103234567890\n  \
    tikigate ledger list --route refund --from 2026-11-01 --to 2026-11-30\n  \
    tikigate ledger list --query 2026-11 --limit 20 --format json")]
pub struct List {
    /// Only records in this state
    #[arg(long, value_parser = ["claimed", "released", "done", "unknown"])]
    pub state: Option<String>,
    /// Only records of this route
    #[arg(long)]
    pub route: Option<String>,
    /// Only records whose idempotency key contains this
    #[arg(long, value_name = "TEXT")]
    pub query: Option<String>,
    /// Only records about this: exactly the id of a transaction or an order, or another field
    #[arg(long, value_name = "ID")]
    pub reference: Option<String>,
    /// Only records first claimed on this date or later, or at this time or later
    #[arg(long, value_name = "DATE")]
    pub from: Option<String>,
    /// Only records first claimed up to this date, which counts whole; or before this time
    #[arg(long, value_name = "DATE")]
    pub to: Option<String>,
    /// Only records after this one
    #[arg(long, value_name = "ID")]
    pub after: Option<String>,
    /// Records at most
    #[arg(long, value_name = "N", default_value_t = 100,
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub limit: u32,
    /// How to print them
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

/// `ledger show`
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tikigate ledger show rec-12\n  \
    tikigate ledger show 5f1d7a84-refund-1 --format json")]
pub struct Show {
    /// A record's id, such as rec-12, or its idempotency key where only one record has it
    pub key: String,
    /// How to print it
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

pub(super) fn print_list(
    client: &AdminClient,
    list: &List,
    zone: &Zone,
    out: &mut Writer<'_>,
) -> Result<(), Failure> {
    let moment =
        |text: &Option<String>, read: &dyn Fn(&str) -> _| text.as_deref().map(read).transpose();
    let wanted = Wanted {
        state: list.state.clone(),
        route: list.route.clone(),
        key: None,
        query: list.query.clone(),
        reference: list.reference.clone(),
        from: moment(&list.from, &|text| zone.from(text))?,
        until: moment(&list.to, &|text| zone.until(text))?,
        after: list.after.clone(),
    };
    let limit = usize::try_from(list.limit).unwrap_or(usize::MAX);
    let (records, next) = fetch(client, wanted, limit)?;
    if list.format == Format::Json {
        return Ok(out.json(&json!({ "records": records, "next": next }))?);
    }
    out.table(&understand_all(records)?)?;
    if let Some(next) = next {
        out.line(&format!(
            "more records follow: --after {}",
            terminal::escape(&next)
        ))?;
    }
    Ok(())
}

pub(super) fn print_record(
    client: &AdminClient,
    show: &Show,
    out: &mut Writer<'_>,
) -> Result<(), Failure> {
    let shown = find(client, &show.key, out)?;
    match show.format {
        Format::Json => out.json(&shown)?,
        Format::Text => out.record(&understand(shown)?)?,
    }
    Ok(())
}
