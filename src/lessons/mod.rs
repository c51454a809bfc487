//! Lessons: what a learning space learns from the end of a task, or from preferences that the user has stated in a session.
//!
//! A lesson is created in the transaction that finishes the task ([`create`]). The job `Distill` distills its text from the task
//! and its messages, and the job `WriteLesson` writes it to the skills of the space. [`store`] has the SQL, and [`convert`]
//! changes the storage format of lessons. The handlers of the jobs are in `learn`, and the learning status of a session, which
//! follows from its lessons, is in `learning_spaces`.

pub mod convert;
pub mod create;
pub mod store;

use crate::text_enum::text_enum;

text_enum! {
    /// The state of a lesson. The first three are open: a job will distill or write the lesson.
    pub enum LessonState {
        /// The lesson is being distilled from its task, or waits for it.
        Distilling = "distilling",
        /// The text is known, and waits to be written to the skills.
        Pending = "pending",
        /// The skill agent is working on the lesson.
        Writing = "writing",
        /// The skill agent has finished its work on the lesson. It may have found that there was nothing to change.
        Written = "written",
        /// There is nothing to learn.
        Skipped = "skipped",
        /// The lesson could not be distilled or written.
        Failed = "failed",
    }
}

text_enum! {
    /// The kind of a lesson.
    pub enum LessonKind {
        /// How a task succeeded.
        Success = "success",
        /// Why a task failed, and how that can be prevented.
        Failure = "failure",
        /// Facts from the messages of a task.
        Facts = "facts",
        /// Preferences of the user.
        Preferences = "preferences",
    }
}
