//! Encrypts and decrypts a project. [`api`] changes the flag, which takes effect at once and in every process: content that is stored
//! from then on is in the new format. [`convert`] is the job that converts the content that is stored already. [`store`] is the SQL.
//!
//! A transaction that stores content [locks the format](crate::encryption::StorageFormat::lock_for_share) first, and a transaction that
//! changes the flag takes the same lock exclusively. So when the flag has changed, no transaction is left that could store content in
//! the old format, and the job finds all of it.

pub mod api;
pub mod convert;
pub mod store;
