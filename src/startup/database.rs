//! Connects to the database: the embedded Postgres or an external one.

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use secrecy::ExposeSecret;
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use super::STARTUP_TIMEOUT;
use crate::config::Database;
use crate::db::pooler::{PoolerCheck, SHARED_SESSIONS};
use crate::error::database::DatabaseOutage;

/// Opens the first connection. If the database is external, waits up to `STARTUP_TIMEOUT` for it to start, and rejects a
/// pooler that shares sessions.
///
/// # Errors
/// Returns an error with a remedy if the connection cannot be opened or the pooler shares sessions.
pub async fn connect(
    options: &PgConnectOptions,
    is_external: bool,
    pooler_check: &PoolerCheck,
) -> anyhow::Result<sqlx::PgConnection> {
    if !is_external {
        return Ok(pooler_check.connect(options, &[]).await?);
    }
    let deadline = tokio::time::Instant::now() + STARTUP_TIMEOUT;
    loop {
        let attempt = tokio::time::timeout_at(deadline, pooler_check.connect(options, &[])).await;
        match attempt {
            Ok(Ok(conn)) => {
                pooler_check.verify_at_startup(options).await?;
                return Ok(conn);
            }
            Ok(Err(_)) if pooler_check.found_shared_session() => bail!(SHARED_SESSIONS),
            Ok(Err(error)) => {
                let outage = DatabaseOutage::classify(&error);
                let description = outage.map_or("cannot connect to the database", DatabaseOutage::description);
                let may_end = outage.is_some_and(|outage| !outage.requires_change());
                if !may_end || tokio::time::Instant::now() >= deadline {
                    let description =
                        format!("{description} (DATABASE_URL, or DATABASE_HOST and the related settings)");
                    return Err(error).context(description);
                }
                tracing::warn!(error = %error, "waiting for the database: {description}");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            Err(_) => bail!(
                "the database named by DATABASE_URL (or DATABASE_HOST) does not respond: check host and port, and \
                 whether the database is running"
            ),
        }
    }
}

/// Returns the connection options for the external database.
///
/// # Errors
/// Returns an error if `DATABASE_URL` is invalid.
pub fn external_database_options(settings: &Database) -> anyhow::Result<PgConnectOptions> {
    let options = if let Some(url) = &settings.database_url {
        url.expose_secret().parse::<PgConnectOptions>().map_err(|err| {
            anyhow!("DATABASE_URL is invalid ({err}): write it as postgres://user:password@host:5432/name")
        })?
    } else {
        let options = PgConnectOptions::new_without_pgpass()
            .host(settings.database_host.as_deref().unwrap_or("localhost"))
            .port(settings.database_port)
            .username(&settings.database_user)
            .database(&settings.database_name);
        match &settings.database_password {
            Some(password) => options.password(password.expose_secret()),
            None => options,
        }
    };
    // `DATABASE_ENABLE_TLS` can only strengthen the mode that the URL or PGSSLMODE requests.
    let is_weaker = matches!(options.get_ssl_mode(), PgSslMode::Disable | PgSslMode::Allow | PgSslMode::Prefer);
    Ok(if settings.database_tls && is_weaker { options.ssl_mode(PgSslMode::Require) } else { options })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::config::Config;

    fn ssl_mode(url: &str, tls: &str) -> String {
        let environment = [("DATABASE_URL", url), ("DATABASE_ENABLE_TLS", tls), ("ROOT_SECRET_PEPPER", "0123456789")];
        let environment: HashMap<_, _> = environment.map(|(name, value)| (name.into(), value.into())).into();
        let config = Config::from_args_and_env(["acontextd"], &environment);
        let config = config.unwrap_or_else(|_| panic!("{url} was rejected"));
        format!("{:?}", external_database_options(&config.database).unwrap().get_ssl_mode())
    }

    #[test]
    fn enabling_tls_never_weakens_the_mode_of_the_url() {
        for (mode, with_tls, without_tls) in [
            ("disable", "Require", "Disable"),
            ("allow", "Require", "Allow"),
            ("prefer", "Require", "Prefer"),
            ("require", "Require", "Require"),
            ("verify-ca", "VerifyCa", "VerifyCa"),
            ("verify-full", "VerifyFull", "VerifyFull"),
        ] {
            let url = format!("postgres://db/a?sslmode={mode}");
            assert_eq!(ssl_mode(&url, "true"), with_tls, "{mode}");
            assert_eq!(ssl_mode(&url, "false"), without_tls, "{mode}");
        }
        assert_eq!(ssl_mode("postgres://db/a", "true"), "Require");
    }
}
