//! The encryption and decryption of a project. [`api`] changes the project's storage format, which takes effect immediately in
//! every process: new content is stored in the new format. [`convert`] is the job that converts existing content. [`store`]
//! has the SQL.
//!
//! Before a transaction stores content, it [locks the format](crate::encryption::StorageFormat::lock_for_share). A transaction
//! that changes the format takes the same lock exclusively. After the change, no transaction can therefore store content in the
//! old format, and the job finds all content in the old format.

pub mod api;
pub mod convert;
pub mod store;
