//! The operator's statistics of a project: the number of its entities, and its usage per day. [`api`] has the routes and
//! [`store`] the SQL. [`models`] has the route with which a project sees its own usage of language models.

pub mod api;
pub mod models;
pub mod store;
