//! `tikigate demo`: a gate between a small legacy backend and a stand-in for Tiki, told line by line.
//!
//! Nothing is played: the gate is the one that `serve` runs, from a configuration file, on real
//! sockets, and the ledger commands are this very binary. Each line says what was sent and what came
//! back, and the demo fails when that is not what it should be.

mod legacy;
mod outbound;
mod stage;
mod tiki_caller;

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::exit;
use super::fake_tiki::FakeTiki;
use legacy::Legacy;
use stage::Stage;
use tiki_caller::{Reply, TikiCaller};

/// Show a gate at work: signed, forged, repeated and late calls of Tiki, and a backend's own calls to it
///
/// One command, no set-up. The gate stays up afterwards, until Ctrl-C, for calls of your own.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tikigate demo          tell the story, then stay up\n  \
    tikigate demo --once   tell the story and exit: 0 if everything went as it should")]
pub struct Args {
    /// Exit when the story is told
    #[arg(long)]
    pub once: bool,
}

/// Runs the command.
pub fn run(args: Args) -> ExitCode {
    match play(&args) {
        Ok(()) => ExitCode::from(exit::OK),
        Err(error) => {
            // Where standard error is closed, the exit code has to do.
            let _ = writeln!(io::stderr(), "tikigate demo: {error:#}");
            ExitCode::from(exit::FAILURE)
        }
    }
}

fn play(args: &Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("no runtime")?;
    let mut end = {
        let _entered = runtime.enter();
        End::new().context("no signals")?
    };
    let legacy = runtime
        .block_on(Legacy::start())
        .context("the legacy backend can't start")?;
    let tiki = runtime
        .block_on(outbound::start_tiki())
        .context("the stand-in for Tiki can't start")?;
    let mut stage = Stage::set(legacy.address(), tiki.address()).context("the gate can't start")?;
    let told = runtime.block_on(async {
        tokio::select! {
            told = tell(&mut stage, &legacy, &tiki) => told,
            () = end.asked_for() => Err(anyhow!("it was interrupted")),
        }
    });
    if told.is_ok() && !args.once {
        stay_up(&stage);
        runtime.block_on(end.asked_for());
    }
    stage.clear();
    told
}

/// The signals that end the demo. Whoever sends them wants its gate and its files to be gone, too.
struct End {
    interrupt: Signal,
    terminate: Signal,
}

impl End {
    fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn asked_for(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// The story. Each scene says what it shows, does it, and checks what came back.
async fn tell(stage: &mut Stage, legacy: &Legacy, fake: &FakeTiki) -> anyhow::Result<()> {
    let tiki = TikiCaller::new(stage.url());
    say(&format!(
        "The gate listens on {}, the legacy backend behind it on {}.",
        stage.url(),
        legacy.address()
    ));
    say(&format!("Its log goes to {}.", stage.log_path().display()));

    say("\nPayment notices (IPN)");
    let ipn = tiki_caller::ipn("TIKI-1001", "P-1001", 150_000);
    let reply = tiki.send("/tiki/ipn", &ipn).await?;
    scene("signed by Tiki", &reply, 200, "passed on to the backend")?;
    ensure!(legacy.notices() == 1, "the backend should have one notice");

    let reply = tiki.forged("/tiki/ipn", &ipn).await?;
    scene("one digit of the signature changed", &reply, 401, "refused")?;
    let reply = tiki
        .signed_ago(
            Duration::from_secs(3600),
            "/tiki/ipn",
            &tiki_caller::ipn("TIKI-1002", "P-1002", 90_000),
        )
        .await?;
    scene(
        "signed an hour ago",
        &reply,
        503,
        "refused: outside the time window; Tiki will ask again",
    )?;
    let reply = tiki.stranger("/tiki/ipn", &ipn).await?;
    scene("from an unknown client", &reply, 401, "refused")?;
    ensure!(
        legacy.notices() == 1,
        "nothing refused may reach the backend"
    );
    say("  The backend heard of one notice out of these four.");

    say("\nRefunds, of which each is sent at most once");
    let refund = tiki_caller::refund("R-1", "TIKI-1001", 150_000);
    let reply = tiki.send("/tiki/refund", &refund).await?;
    scene("refund R-1 of 150,000", &reply, 200, "done by the backend")?;
    let reply = tiki.send("/tiki/refund", &refund).await?;
    scene("the same again", &reply, 200, "answered from the ledger")?;
    ensure!(
        reply.replayed,
        "the second answer should come from the ledger"
    );
    ensure!(
        legacy.refunds("R-1") == 1,
        "R-1 should have reached the backend once"
    );
    say(&format!(
        "  The backend's counter for R-1: {}.",
        legacy.refunds("R-1")
    ));
    let reply = tiki
        .send(
            "/tiki/refund",
            &tiki_caller::refund("R-1", "TIKI-1001", 900_000),
        )
        .await?;
    scene("R-1 again, with another amount", &reply, 422, "refused")?;

    say("\nA backend slower than Tiki's patience");
    let slow = tiki_caller::refund("R-2-slow", "TIKI-1001", 20_000);
    let reply = tiki.send("/tiki/refund", &slow).await?;
    scene(
        "refund R-2-slow",
        &reply,
        504,
        "no answer in time: Tiki will ask again; the call goes on",
    )?;
    legacy.answer_the_slow_one();
    let reply = tiki.send("/tiki/refund", &slow).await?;
    scene("sent again by Tiki", &reply, 200, "the late answer")?;
    ensure!(
        legacy.refunds("R-2-slow") == 1,
        "R-2-slow should have reached the backend once"
    );
    say(&format!(
        "  The backend's counter for R-2-slow: {}.",
        legacy.refunds("R-2-slow")
    ));

    say("\nA backend that dies after reading a refund");
    let dies = tiki_caller::refund("R-3-dies", "TIKI-1001", 30_000);
    let reply = tiki.send("/tiki/refund", &dies).await?;
    scene(
        "refund R-3-dies",
        &reply,
        502,
        "the connection broke: did it happen? Nobody knows",
    )?;
    let reply = tiki.send("/tiki/refund", &dies).await?;
    scene(
        "sent again by Tiki",
        &reply,
        500,
        "held: not sent to the backend a second time",
    )?;
    ensure!(
        legacy.refunds("R-3-dies") == 1,
        "a held refund must not be sent again"
    );
    let listed = stage.command(&["ledger", "list", "--state", "unknown"])?;
    ensure!(
        listed.contains("R-3-dies"),
        "the list should show the held refund"
    );
    let resolved = stage.command(&[
        "ledger",
        "resolve",
        "R-3-dies",
        "--applied",
        "--reason",
        "found in the backend's books",
    ])?;
    ensure!(!resolved.is_empty(), "resolving should say what it did");
    let reply = tiki.send("/tiki/refund", &dies).await?;
    scene(
        "sent again by Tiki",
        &reply,
        200,
        "answered as the person said",
    )?;
    ensure!(
        legacy.refunds("R-3-dies") == 1,
        "a resolved refund must not be sent again"
    );
    say(&format!(
        "  The backend's counter for R-3-dies: {}.",
        legacy.refunds("R-3-dies")
    ));
    tell_of_the_kill(stage, legacy, &tiki).await?;
    outbound::tell(stage, fake).await?;
    say("\nThat was the demo: every call ended as it should.");
    Ok(())
}

/// The ledger outlives the gate: nothing is sent twice, and nothing that was answered is forgotten.
async fn tell_of_the_kill(
    stage: &mut Stage,
    legacy: &Legacy,
    tiki: &TikiCaller,
) -> anyhow::Result<()> {
    say("\nThe gate is killed (kill -9) while a refund is at the backend, and started again");
    let cut_off = tiki_caller::refund("R-4-slow", "TIKI-1001", 40_000);
    {
        let answered = tiki.send("/tiki/refund", &cut_off);
        let reached = legacy.wait_for_refund("R-4-slow");
        tokio::select! {
            reply = answered => bail!("R-4-slow should still be running: {}", reply?.status),
            () = reached => {}
        }
    }
    stage.kill_and_start_again()?;
    let reply = tiki.send("/tiki/refund", &cut_off).await?;
    scene(
        "refund R-4-slow, sent again by Tiki",
        &reply,
        500,
        "held: it was at the backend when the gate died",
    )?;
    ensure!(
        legacy.refunds("R-4-slow") == 1,
        "a refund that a dead gate sent must not be sent again"
    );
    say(&format!(
        "  The backend's counter for R-4-slow: {}.",
        legacy.refunds("R-4-slow")
    ));
    let refund = tiki_caller::refund("R-1", "TIKI-1001", 150_000);
    let reply = tiki.send("/tiki/refund", &refund).await?;
    scene(
        "refund R-1 once more",
        &reply,
        200,
        "still answered from the ledger",
    )?;
    ensure!(
        reply.replayed && legacy.refunds("R-1") == 1,
        "the ledger should have outlived the gate"
    );
    Ok(())
}

/// Tells one call: what it was, what Tiki got, what that means.
fn scene(what: &str, reply: &Reply, expected: u16, meaning: &str) -> anyhow::Result<()> {
    let replayed = if reply.replayed {
        ", Idempotency-Replayed: true"
    } else {
        ""
    };
    let code = reply
        .code
        .as_deref()
        .map(|code| format!(" {code}"))
        .unwrap_or_default();
    say(&format!(
        "  {what:<36} → {}{code}{replayed}: {meaning}",
        reply.status
    ));
    ensure!(
        reply.status == expected,
        "{what}: the answer should have been {expected}, and was {}: {}",
        reply.status,
        reply.body
    );
    Ok(())
}

fn stay_up(stage: &Stage) {
    say("\nThe gate stays up until Ctrl-C. In another terminal, a signed call of your own:\n");
    say(&format!("  {}\n", stage.example()));
    say(&format!("Its ledger: {}", stage.list_command()));
    say(&format!(
        "A plain call of your own to Tiki:\n\n  {}\n",
        stage.plain_example()
    ));
}

fn say(line: &str) {
    // Where standard output is closed, the exit code tells how it went.
    let _ = writeln!(io::stdout(), "{line}");
}
