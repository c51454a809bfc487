//! Payloads of the observation and learning jobs. This is the only part of `learn` that other features use.
//!
//! SQL statements that enqueue or find the job [`Observe`] use the SQL function `observe_job`, which returns its kind, payload,
//! lane and dedupe key. A test compares the function with [`Observe`].

use serde::{Deserialize, Serialize};

use crate::ids::{LearningSpaceId, LessonId, SessionId, TaskId};
use crate::jobs::Job;

/// The job that observes the messages of a session. A session has at most one that is ready and one that is running.
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

/// The job that completes the open tasks of a session that a learning space learns from.
#[derive(Debug, Serialize, Deserialize)]
pub struct FinalizeSession {
    pub session: SessionId,
}

impl Job for FinalizeSession {
    // Differs from the name of the type, because existing databases contain jobs of this kind.
    const KIND: &'static str = "conclude";

    fn lane(&self) -> Option<String> {
        Some(session_lane(self.session))
    }

    fn dedupe_key(&self) -> Option<String> {
        Some(self.session.to_string())
    }
}

/// The job that distills a lesson from a finished task.
#[derive(Debug, Serialize, Deserialize)]
pub struct Distill {
    pub session: SessionId,
    pub task: TaskId,
    pub lesson: LessonId,
}

impl Job for Distill {
    const KIND: &'static str = "distill";

    fn dedupe_key(&self) -> Option<String> {
        Some(self.lesson.to_string())
    }
}

/// The job that writes a lesson to the skills of a learning space. In its run, it may also write other lessons of the space.
#[derive(Debug, Serialize, Deserialize)]
pub struct WriteLesson {
    pub session: SessionId,
    pub learning_space: LearningSpaceId,
    pub lesson: LessonId,
}

impl Job for WriteLesson {
    const KIND: &'static str = "write_lesson";

    fn lane(&self) -> Option<String> {
        Some(format!("space:{}", self.learning_space))
    }

    fn dedupe_key(&self) -> Option<String> {
        Some(self.lesson.to_string())
    }
}

/// Returns the lane of the jobs that process a session. They run one at a time.
fn session_lane(session: SessionId) -> String {
    format!("session:{session}")
}
