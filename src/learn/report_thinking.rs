//! The tool `report_thinking`, with which a model takes notes for itself.

use serde::Deserialize;

/// The result of a call.
pub(super) const REPLY: &str = "Continue with the next step.";

/// The arguments of a call. The notes are only for the model itself.
#[derive(Deserialize)]
pub(super) struct ReportThinking {
    #[serde(rename = "thinking")]
    _thinking: String,
}
