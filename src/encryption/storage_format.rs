//! The storage format of a project's content, and the lock that prevents its change.

use sqlx::PgConnection;

use crate::ids::ProjectId;

/// How content is stored. In Postgres it is a boolean, which is true if content is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StorageFormat {
    Plaintext,
    Encrypted,
}

impl StorageFormat {
    pub fn from_flag(is_encrypted: bool) -> Self {
        if is_encrypted { Self::Encrypted } else { Self::Plaintext }
    }

    pub fn is_encrypted(self) -> bool {
        self == Self::Encrypted
    }

    /// Returns the format in which new content of the project must be stored, or `None` if the project does not exist. Prevents
    /// a change of the format until the transaction ends. If another transaction is changing the format, waits until that
    /// transaction ends. A transaction that stores content calls this before it waits for any other lock.
    ///
    /// # Errors
    /// Returns an error if the database fails.
    pub async fn lock_for_share(conn: &mut PgConnection, project: ProjectId) -> sqlx::Result<Option<Self>> {
        sqlx::query_scalar!(r#"select encryption_enabled_for_share($1, true) as "format: StorageFormat""#, project as _)
            .fetch_one(conn)
            .await
    }

    /// Waits for all transactions that store content of the project, and blocks new ones until this transaction ends.
    ///
    /// # Errors
    /// Returns an error if the database fails.
    pub async fn lock_exclusively(conn: &mut PgConnection, project: ProjectId) -> sqlx::Result<()> {
        sqlx::query!("select pg_advisory_xact_lock(encryption_lock_id($1))", project as _)
            .fetch_one(conn)
            .await
            .map(drop)
    }
}

impl sqlx::Type<sqlx::Postgres> for StorageFormat {
    fn type_info() -> sqlx::postgres::PgTypeInfo {
        <bool as sqlx::Type<sqlx::Postgres>>::type_info()
    }
}

impl sqlx::postgres::PgHasArrayType for StorageFormat {
    fn array_type_info() -> sqlx::postgres::PgTypeInfo {
        <bool as sqlx::postgres::PgHasArrayType>::array_type_info()
    }
}

impl sqlx::Encode<'_, sqlx::Postgres> for StorageFormat {
    fn encode_by_ref(
        &self,
        buf: &mut sqlx::postgres::PgArgumentBuffer,
    ) -> Result<sqlx::encode::IsNull, sqlx::error::BoxDynError> {
        sqlx::Encode::<sqlx::Postgres>::encode_by_ref(&self.is_encrypted(), buf)
    }
}

impl<'r> sqlx::Decode<'r, sqlx::Postgres> for StorageFormat {
    fn decode(value: sqlx::postgres::PgValueRef<'r>) -> Result<Self, sqlx::error::BoxDynError> {
        Ok(Self::from_flag(<bool as sqlx::Decode<sqlx::Postgres>>::decode(value)?))
    }
}
