//! The `tollgate` program: a table of its commands. What they do is in [`tollgate::commands`].

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tollgate::accounts::codes::CodesFormat;
use tollgate::accounts::transfer::{ImportHow, UsersFormat};
use tollgate::commands::{self, admin, audit, backup, codes, demo, export, ledger, logs, openapi, serve, users};

// Fewer and cheaper trips to the kernel than the system's allocator under many small buffers; see benches/README.md.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(name = "tollgate", version, about = "The auth gateway in front of AI services")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the gateway. SIGHUP reloads the config, SIGTERM drains and stops.
    Serve(ConfigArg),
    /// Check a config and print what is in force, secrets masked.
    CheckConfig(ConfigArg),
    /// Make an admin; the first becomes superadmin. The password comes from TOLLGATE_ADMIN_PASSWORD or a prompt.
    CreateAdmin {
        #[command(flatten)]
        config: ConfigArg,
        #[arg(long)]
        username: String,
        #[arg(long)]
        email: String,
    },
    /// Run the simulated AI service.
    MockUpstream {
        #[arg(long, default_value = "127.0.0.1:9100")]
        listen: SocketAddr,
    },
    /// Start a simulated AI service, the gateway and a user, and make a call.
    Demo {
        /// End after the two calls instead of serving until Ctrl-C.
        #[arg(long)]
        once: bool,
    },
    /// Read the conversation journal.
    Logs {
        #[command(flatten)]
        config: ConfigArg,
        #[command(subcommand)]
        command: LogsCommand,
    },
    /// Check the books.
    Ledger {
        #[command(flatten)]
        config: ConfigArg,
        #[command(subcommand)]
        command: LedgerCommand,
    },
    /// Write everything a server keeps to one file, also while it runs.
    Backup {
        #[command(flatten)]
        config: ConfigArg,
        /// "-": standard output.
        file: PathBuf,
        /// Leave out data_dir/secrets. Without its pepper no credential in the backup works.
        #[arg(long)]
        without_secrets: bool,
    },
    /// Put a backup into data_dir, into the backend that the config names. The server must be stopped.
    Restore {
        #[command(flatten)]
        config: ConfigArg,
        /// "-": standard input.
        file: PathBuf,
        /// Move aside what is in data_dir; nothing is deleted.
        #[arg(long)]
        force: bool,
    },
    /// Print the OpenAPI 3.1 document of a port.
    Openapi {
        #[arg(value_enum, default_value = "public")]
        port: Port,
    },
    /// Bring users from another system, or take them to one.
    Users {
        #[command(flatten)]
        config: ConfigArg,
        #[command(subcommand)]
        command: UsersCommand,
    },
    /// One-time login codes: each opens one login of its user, with his password.
    Codes {
        #[command(flatten)]
        config: ConfigArg,
        #[command(subcommand)]
        command: CodesCommand,
    },
    /// Read the audit trail: who did what, from where, with what result.
    Audit {
        #[command(flatten)]
        config: ConfigArg,
        #[command(subcommand)]
        command: AuditCommand,
    },
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Port {
    Public,
    Admin,
}

#[derive(Subcommand)]
enum LedgerCommand {
    /// Check that every meter of every user adds up.
    Verify,
}

#[derive(Subcommand)]
enum UsersCommand {
    /// Import users, a JSON object a line, with their password hashes and keys. A file can be imported again.
    Import {
        /// "-": standard input.
        file: PathBuf,
        /// Say what would be done, and do nothing.
        #[arg(long)]
        dry_run: bool,
        /// Change users who are there already.
        #[arg(long)]
        update: bool,
    },
    /// Write all users, as lines that can be imported or as a table.
    Export {
        #[arg(value_enum, default_value = "jsonl")]
        format: UsersForm,
        /// Password hashes too. Those of argon2id need the pepper they were made with.
        #[arg(long)]
        with_hashes: bool,
        /// The file to write; it appears when it is whole.
        #[arg(long)]
        output: Option<PathBuf>,
    },
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum UsersForm {
    Jsonl,
    Csv,
}

impl UsersCommand {
    fn run(self, config: Option<&Path>) -> Result<(), commands::Failure> {
        match self {
            Self::Import { file, dry_run, update } => {
                users::import(config, &file, ImportHow { dry_run, update, by: None })
            }
            Self::Export { format, with_hashes, output } => {
                let format = match format {
                    UsersForm::Jsonl => UsersFormat::JsonLines,
                    UsersForm::Csv => UsersFormat::Csv,
                };
                users::export(config, format, with_hashes, output.as_deref())
            }
        }
    }
}

#[derive(Subcommand)]
enum CodesCommand {
    /// Give codes to a user, all of them or none.
    Generate {
        /// Number, username or email.
        #[arg(required_unless_present = "all")]
        user: Option<String>,
        #[arg(default_value_t = 1_000_000)]
        count: u64,
        /// A list of his own to every active user: `codes generate --all --each 1000`.
        #[arg(long, conflicts_with_all = ["user", "count"], requires = "each")]
        all: bool,
        /// With --all: how many to each.
        #[arg(long = "each")]
        each: Option<u64>,
        /// When those that were not used are over, such as 2026-12-31T23:59:59Z.
        #[arg(long)]
        expires_at: Option<String>,
        /// A word for what they are for.
        #[arg(long)]
        category: Option<String>,
    },
    /// Write a user's codes, used ones included.
    Export {
        /// Number, username or email.
        user: String,
        #[arg(value_enum, default_value = "csv")]
        format: CodesForm,
        /// The file to write; it appears when it is whole.
        #[arg(long)]
        output: Option<PathBuf>,
    },
    /// Counts of a user's codes, or of everybody's.
    Stats {
        /// Number, username or email.
        user: Option<String>,
    },
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum CodesForm {
    Csv,
    Json,
}

impl CodesCommand {
    fn run(self, config: Option<&Path>) -> Result<(), commands::Failure> {
        match self {
            Self::Generate { user, count, all: _, each, expires_at, category } => {
                let whose = user.as_deref().map_or(codes::Whose::Everybody, codes::Whose::User);
                let wanted = codes::Wanted {
                    whose,
                    count: each.filter(|_| user.is_none()).unwrap_or(count),
                    expires_at: expires_at.as_deref(),
                    category: category.as_deref(),
                };
                codes::generate(config, &wanted)
            }
            Self::Export { user, format, output } => {
                let format = match format {
                    CodesForm::Csv => CodesFormat::Csv,
                    CodesForm::Json => CodesFormat::Json,
                };
                codes::export(config, &user, format, output.as_deref())
            }
            Self::Stats { user } => codes::stats(config, user.as_deref()),
        }
    }
}

#[derive(Subcommand)]
enum AuditCommand {
    /// Records, newest first, one JSON object a line.
    Show(audit::Wanted),
    /// Check every record and the chain through them. Needs the server's secrets.
    Verify {
        /// A head that an earlier check or the log has named: the trail must have reached it.
        #[arg(long)]
        head: Option<String>,
    },
}

#[derive(Subcommand)]
enum LogsCommand {
    /// One user's conversations, newest first, one JSON object a line.
    Show {
        /// Number or name.
        #[arg(long)]
        user: String,
        #[arg(long, default_value_t = 1)]
        page: u64,
        #[arg(long, default_value_t = 50)]
        page_size: usize,
    },
    /// Check every record.
    Verify,
    /// Write conversations to a file or to standard output, oldest first.
    Export(ExportArgs),
}

#[derive(clap::Args)]
struct ExportArgs {
    #[arg(long, value_enum, default_value = "jsonl")]
    format: ExportFormat,
    /// Of one user only: number or name.
    #[arg(long)]
    user: Option<String>,
    /// Of calls that ended then or later: 2026-01-15 or 2026-01-15T12:00:00Z.
    #[arg(long)]
    from: Option<String>,
    /// Of calls that ended before then.
    #[arg(long)]
    to: Option<String>,
    /// Of one AI model only.
    #[arg(long)]
    model: Option<String>,
    /// The file to write; it appears when it is whole. Needed for parquet.
    #[arg(long)]
    output: Option<PathBuf>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum ExportFormat {
    Jsonl,
    Parquet,
}

impl From<ExportArgs> for export::Request {
    fn from(args: ExportArgs) -> Self {
        let ExportArgs { format, user, from, to, model, output } = args;
        let format = match format {
            ExportFormat::Jsonl => export::Format::JsonLines,
            ExportFormat::Parquet => export::Format::Parquet,
        };
        Self { format, user, from, to, model, output }
    }
}

#[derive(clap::Args)]
struct ConfigArg {
    /// The config file; without it the one that TOLLGATE_CONFIG names, else embedded defaults.
    #[arg(long, global = true)]
    config: Option<PathBuf>,
}

impl ConfigArg {
    fn file(self) -> Option<PathBuf> {
        let named = || std::env::var_os("TOLLGATE_CONFIG").filter(|name| !name.is_empty()).map(PathBuf::from);
        self.config.or_else(named)
    }
}

fn main() -> ExitCode {
    // Before there are threads: whatever is made from here on is nobody else's to read.
    tollgate::store::readers::restrict(false);
    #[cfg(feature = "failpoints")]
    let _armed = tollgate::failpoint::arm();
    let done = match Cli::parse().command {
        Command::Serve(config) => serve::run(config.file().as_deref()),
        Command::CheckConfig(config) => serve::check_config(config.file().as_deref()),
        Command::CreateAdmin { config, username, email } => admin::create(config.file().as_deref(), &username, &email),
        Command::MockUpstream { listen } => serve::mock_upstream(listen),
        Command::Demo { once } => demo::run(once),
        Command::Logs { config, command: LogsCommand::Show { user, page, page_size } } => {
            logs::show(config.file().as_deref(), &user, page, page_size)
        }
        Command::Audit { config, command: AuditCommand::Show(wanted) } => {
            audit::show(config.file().as_deref(), &wanted)
        }
        Command::Audit { config, command: AuditCommand::Verify { head } } => {
            audit::verify(config.file().as_deref(), head.as_deref())
        }
        Command::Logs { config, command: LogsCommand::Verify } => logs::verify(config.file().as_deref()),
        Command::Logs { config, command: LogsCommand::Export(args) } => {
            export::run(config.file().as_deref(), args.into())
        }
        Command::Ledger { config, command: LedgerCommand::Verify } => ledger::verify(config.file().as_deref()),
        Command::Openapi { port } => openapi::print(matches!(port, Port::Admin)),
        Command::Users { config, command } => command.run(config.file().as_deref()),
        Command::Codes { config, command } => command.run(config.file().as_deref()),
        Command::Backup { config, file, without_secrets } => {
            backup::backup(config.file().as_deref(), &file, !without_secrets)
        }
        Command::Restore { config, file, force } => backup::restore(config.file().as_deref(), &file, force),
    };
    match done {
        Ok(()) | Err(commands::Failure::ReaderLeft) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("tollgate: {failure}");
            ExitCode::from(match failure {
                commands::Failure::Usage(_) => 2,
                commands::Failure::Failed(_) | commands::Failure::ReaderLeft => 1,
            })
        }
    }
}
