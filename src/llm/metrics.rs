//! The Prometheus metrics of language models: the model calls of this process with their duration and tokens, and the runs of
//! agents.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode_registry;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::agent::AgentOutcome;
use super::usage::CallOutcome;
use super::{Purpose, TokenUsage};

/// The buckets of the duration of a call in seconds.
const DURATION_BUCKETS: [f64; 9] = [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 180.0];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CallLabels {
    purpose: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PurposeLabels {
    purpose: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct TokenLabels {
    purpose: &'static str,
    kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RunLabels {
    agent: &'static str,
    outcome: &'static str,
}

/// The metrics of model calls and agents, and the registry that encodes them. The configured model is the same for all calls, so
/// it is not a label.
pub struct ModelMetrics {
    registry: Registry,
    calls: Family<CallLabels, Counter>,
    durations: Family<PurposeLabels, Histogram, fn() -> Histogram>,
    tokens: Family<TokenLabels, Counter>,
    runs: Family<RunLabels, Counter>,
}

impl Default for ModelMetrics {
    fn default() -> Self {
        let (calls, tokens, runs) = (Family::default(), Family::default(), Family::default());
        let durations: Family<_, _, fn() -> Histogram> =
            Family::new_with_constructor(|| Histogram::new(DURATION_BUCKETS));
        let mut registry = Registry::with_prefix("acontextd");
        registry.register("model_calls", "Number of model calls", calls.clone());
        let help = "Duration of a model call in seconds, with its repeated attempts";
        registry.register_with_unit("model_call_duration", help, Unit::Seconds, durations.clone());
        let help = "Tokens by kind: input, cached (included in input) and output";
        registry.register("model_tokens", help, tokens.clone());
        let help = "Number of runs of an agent by outcome, without the runs that a failed model call has ended";
        registry.register("agent_runs", help, runs.clone());
        Self { registry, calls, durations, tokens, runs }
    }
}

impl ModelMetrics {
    /// Appends the metrics in the Prometheus text format.
    ///
    /// # Errors
    /// Never returns an error, because the text is written to memory.
    pub fn encode(&self, text: &mut String) -> std::fmt::Result {
        encode_registry(text, &self.registry)
    }

    /// Counts a run of the agent whose model calls have this purpose.
    pub fn record_run(&self, agent: Purpose, outcome: AgentOutcome) {
        self.runs.get_or_create(&RunLabels { agent: agent.as_str(), outcome: outcome.as_str() }).inc();
    }

    pub(super) fn record_call(&self, purpose: Purpose, outcome: CallOutcome, duration: Duration, usage: TokenUsage) {
        let purpose = purpose.as_str();
        self.calls.get_or_create(&CallLabels { purpose, outcome: outcome.as_str() }).inc();
        self.durations.get_or_create(&PurposeLabels { purpose }).observe(duration.as_secs_f64());
        let TokenUsage { input_tokens, cached_tokens, output_tokens } = usage;
        for (kind, tokens) in [("input", input_tokens), ("cached", cached_tokens), ("output", output_tokens)] {
            self.tokens.get_or_create(&TokenLabels { purpose, kind }).inc_by(tokens.into());
        }
    }
}
