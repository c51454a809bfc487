//! Encrypting a project, and opening it again. [`api`] changes the flag, which holds at once and for every process: all that is
//! stored from then on is in the new form. [`convert`] is the job that turns what is there. [`store`] is the SQL.
//!
//! Whoever stores content asks in the same transaction which form is wanted (`encryption_enabled_for_share` in
//! `migrations/0001_projects.sql`), and holds that answer by a lock which whoever changes the flag takes alone. So when the flag
//! has changed, no transaction is left that could store in the old form, and what the job finds is all there will ever be.

pub mod api;
pub mod convert;
pub mod store;
