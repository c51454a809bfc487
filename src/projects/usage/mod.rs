//! The operator's statistics of a project: the number of its entities, and its usage per day. [`api`] has the routes and
//! [`store`] the SQL.

pub mod api;
pub mod store;
