//! The payloads of the jobs of learning. Features that cause this work use nothing else of it.
//!
//! Statements that enqueue or look for [`Observe`] use the SQL function `observe_job`, which is the same job in SQL; a test compares both.

use serde::{Deserialize, Serialize};

use crate::ids::{SessionId, TaskId};
use crate::jobs::Job;

/// Observes the messages of a session. A session has one such job at most.
#[derive(Debug, Serialize, Deserialize)]
pub struct Observe {
    pub session: SessionId,
}

impl Job for Observe {
    const KIND: &'static str = "observe";

    fn lane(&self) -> Option<String> {
        Some(session_lane(self.session))
    }

    fn dedupe_key(&self) -> Option<String> {
        Some(self.session.to_string())
    }
}

/// Ends what is open in a session that a space learns.
#[derive(Debug, Serialize, Deserialize)]
pub struct FinalizeSession {
    pub session: SessionId,
}

impl Job for FinalizeSession {
    const KIND: &'static str = "conclude";

    fn lane(&self) -> Option<String> {
        Some(session_lane(self.session))
    }

    fn dedupe_key(&self) -> Option<String> {
        Some(self.session.to_string())
    }
}

/// Learns from a task that has ended.
#[derive(Debug, Serialize, Deserialize)]
pub struct Distill {
    pub task: TaskId,
}

impl Job for Distill {
    const KIND: &'static str = "distill";

    fn dedupe_key(&self) -> Option<String> {
        Some(self.task.to_string())
    }
}

/// One job works on a session at a time.
fn session_lane(session: SessionId) -> String {
    format!("session:{session}")
}
