//! The text format of log lines: time, level, message, fields of the event, and those fields of its spans that the event does
//! not have. A line therefore contains each fact once.

use std::fmt::{self, Debug};

use tracing::field::{Field, Visit};
use tracing::span::Record;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::format::{DefaultFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::{LookupSpan, Scope};

/// Fields of spans, which have the names of OpenTelemetry, each with the field of an event that contains the same fact.
const SAME_FACTS: &[(&str, &str)] =
    &[("http.request.method", "method"), ("http.route", "path"), ("http.response.status_code", "status")];

/// The prefix of fields that only the exporter of traces uses.
const EXPORTER_PREFIX: &str = "otel.";

/// The characters after the name and after the value of a span's field in the stored text. They are control characters, which
/// no field contains.
const AFTER_NAME: char = '\u{1e}';
const AFTER_VALUE: char = '\u{1f}';

/// Formats events as lines of text. Requires [`SpanFields`].
pub(super) struct TextFormat;

impl<S: Subscriber + for<'a> LookupSpan<'a>> FormatEvent<S, SpanFields> for TextFormat {
    fn format_event(
        &self,
        context: &FmtContext<'_, S, SpanFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        SystemTime.format_time(&mut writer)?;
        let level = *event.metadata().level();
        if writer.has_ansi_escapes() {
            write!(writer, " \u{1b}[{}m{level:>5}\u{1b}[0m ", color(level))?;
        } else {
            write!(writer, " {level:>5} ")?;
        }
        DefaultFields::new().format_fields(writer.by_ref(), event)?;
        for (name, value) in span_fields(context, event) {
            write!(writer, " {name}={value}")?;
        }
        writeln!(writer)
    }
}

/// Returns the ANSI code of the color of a level.
fn color(level: Level) -> u8 {
    match level {
        Level::ERROR => 31,
        Level::WARN => 33,
        Level::INFO => 32,
        Level::DEBUG => 34,
        Level::TRACE => 35,
    }
}

/// Returns the fields of the event's spans, from the outermost span to the innermost one, that the event does not have. Of
/// several fields with the same name, returns the last one.
fn span_fields<S: Subscriber + for<'a> LookupSpan<'a>>(
    context: &FmtContext<'_, S, SpanFields>,
    event: &Event<'_>,
) -> Vec<(String, String)> {
    let event_fields = event.metadata().fields();
    let is_in_event = |name: &str| {
        let same_fact = SAME_FACTS.iter().find(|(span_field, _)| *span_field == name);
        event_fields.field(name).is_some() || same_fact.is_some_and(|(_, name)| event_fields.field(name).is_some())
    };
    let mut fields: Vec<(String, String)> = Vec::new();
    for span in context.event_scope().into_iter().flat_map(Scope::from_root) {
        let extensions = span.extensions();
        let Some(text) = extensions.get::<FormattedFields<SpanFields>>() else { continue };
        for (name, value) in text.split(AFTER_VALUE).filter_map(|field| field.split_once(AFTER_NAME)) {
            if !is_in_event(name) {
                fields.retain(|(other, _)| other != name);
                fields.push((name.to_owned(), value.to_owned()));
            }
        }
    }
    fields
}

/// Stores the fields of spans for [`TextFormat`].
pub(super) struct SpanFields;

impl<'w> FormatFields<'w> for SpanFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut visitor = SpanFieldVisitor { writer, result: Ok(()) };
        fields.record(&mut visitor);
        visitor.result
    }

    // The default implementation inserts a space, which would become part of a value.
    fn add_fields(&self, current: &'w mut FormattedFields<Self>, fields: &Record<'_>) -> fmt::Result {
        self.format_fields(current.as_writer(), fields)
    }
}

struct SpanFieldVisitor<'w> {
    writer: Writer<'w>,
    result: fmt::Result,
}

impl Visit for SpanFieldVisitor<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if self.result.is_ok() && !field.name().starts_with(EXPORTER_PREFIX) {
            self.result = write!(self.writer, "{}{AFTER_NAME}{value:?}{AFTER_VALUE}", field.name());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::layer::SubscriberExt;

    use super::super::text_layer;

    #[derive(Clone, Default)]
    struct Output(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Output {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Returns what is logged while `log` runs, without the time of each line.
    fn output(ansi: bool, log: impl FnOnce()) -> Vec<String> {
        let output = Output::default();
        let writer = output.clone();
        let layer = text_layer(ansi, move || writer.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), log);
        let text = String::from_utf8(output.0.lock().unwrap().clone()).unwrap();
        text.lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
    }

    #[test]
    fn facts_of_an_event_and_its_span_are_written_once() {
        let lines = output(false, || {
            let span = tracing::info_span!(
                "request",
                otel.name = "GET /a/{id}",
                http.request.method = "GET",
                http.route = "/a/{id}",
                request.id = "r-1",
                project.id = tracing::field::Empty,
                http.response.status_code = tracing::field::Empty,
            );
            let _entered = span.enter();
            tracing::warn!("before");
            span.record("http.response.status_code", 200_u16);
            span.record("project.id", "p-1");
            tracing::info!(
                request.id = "r-1",
                project.id = "p-1",
                method = "GET",
                path = "/a/7",
                status = 200,
                "request"
            );
        });
        assert_eq!(
            lines,
            [
                r#" WARN before http.request.method="GET" http.route="/a/{id}" request.id="r-1""#,
                r#" INFO request request.id="r-1" project.id="p-1" method="GET" path="/a/7" status=200"#,
            ]
        );
    }

    #[test]
    fn fields_of_nested_spans_are_written_once() {
        let lines = output(false, || {
            let outer = tracing::info_span!("job", job.id = "j-1", job.attempt = 1);
            let _outer = outer.enter();
            let inner = tracing::info_span!("part", job.id = "j-2", part = 3);
            let _inner = inner.enter();
            tracing::error!(error = "two\nlines", "failed");
        });
        assert_eq!(lines, [r#"ERROR failed error="two\nlines" job.attempt=1 job.id="j-2" part=3"#]);
    }

    #[test]
    fn levels_are_colored_on_a_terminal() {
        let lines = output(true, || tracing::error!("failed"));
        assert!(lines[0].contains("\u{1b}[31mERROR\u{1b}[0m"), "{lines:?}");
    }
}
