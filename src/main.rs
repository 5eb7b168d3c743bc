//! The `tikigate` command.

fn main() -> std::process::ExitCode {
    tikigate::cli::main()
}
