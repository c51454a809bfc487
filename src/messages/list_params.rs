//! The parameters of the route that lists messages.

use serde::Deserialize;

use super::page::MessagePageRequest;
use super::request::parse_format;
use crate::conversation::format::{Format, RenderOptions};
use crate::db::page::Cursor;
use crate::error::{Error, Result};
use crate::http::extract::{LenientBool, LenientInt};
use crate::messages::Messages;

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct GetMessagesParams {
    /// Maximum number of messages. Without it, or with 0, all messages are returned, up to the limits of the server. If the
    /// messages are stored in another format, a page contains calls together with their results, and up to 64 messages more.
    #[serde(default)]
    #[param(value_type = Option<u16>, minimum = 0, maximum = 200)]
    pub limit: Option<LenientInt>,
    /// `next_cursor` of the previous page. Ignored without `limit`.
    #[serde(default)]
    pub cursor: Option<String>,
    /// If `true`, the first page has the newest messages. Within a page, messages are ordered oldest first. Ignored without
    /// `limit`.
    #[serde(default)]
    #[param(value_type = Option<bool>)]
    pub time_desc: Option<LenientBool>,
    /// Format of the returned messages; `openai` by default.
    #[serde(default)]
    #[param(value_type = Option<Format>)]
    pub format: Option<String>,
    /// If `true`, the response has public links, which work without an API key: in the format `acontext` to all files (see
    /// `public_urls`), and in other formats to files whose content the response does not contain, such as images in `openai`.
    #[serde(default)]
    #[param(value_type = Option<bool>, default = true)]
    pub with_asset_public_url: Option<LenientBool>,
    /// If `true`, the events between the first and the last of the returned messages are included.
    #[serde(default)]
    #[param(value_type = Option<bool>)]
    pub with_events: Option<LenientBool>,
    /// Edit strategies that shorten the returned conversation: a JSON array of objects with `type` and `params`. The types are
    /// `remove_tool_result`, `remove_tool_call_params`, `middle_out` and `token_limit`.
    ///
    /// `token_limit` removes the oldest messages until at most `limit_tokens` remain. With `pin_system: true`, it never removes
    /// the system messages at the beginning, even if they exceed the limit. With `start_on_user: true`, it then also removes the
    /// messages before the first message of a user that is not a tool result.
    #[serde(default)]
    #[param(example = "[{\"type\": \"token_limit\", \"params\": {\"limit_tokens\": 20000}}]")]
    pub edit_strategies: Option<String>,
    /// Id of the last message that the edit strategies may change. Later messages are returned unchanged.
    #[serde(default)]
    pub pin_editing_strategies_at_message: Option<String>,
    /// How thoughts are returned in the format `openai`: by default they are left out, because its API has no field for them.
    /// With `reasoning_content`, they are in this field, which some servers read.
    #[serde(default)]
    #[param(value_type = Option<String>, example = "reasoning_content")]
    pub thoughts: Option<String>,
    /// How system messages of other formats are returned in the format `anthropic`: by default with the role `user`, and with
    /// `native` with the role `system`.
    #[serde(default)]
    #[param(value_type = Option<String>, example = "native")]
    pub system_messages: Option<String>,
    /// How function calls without a signature are returned in the format `gemini`: by default as they are. With `placeholder`, the
    /// first call of each content has the signature that Gemini 3 accepts for calls of other models; without one, it rejects the
    /// calls of the current turn.
    #[serde(default)]
    #[param(value_type = Option<String>, example = "placeholder")]
    pub signatures: Option<String>,
    /// If `true`, the returned history is changed so that its provider accepts it: tool calls without a result get one that says
    /// so, results without a call become text, messages without content are left out, and the first turn is a user's. The stored
    /// messages do not change.
    #[serde(default)]
    #[param(value_type = Option<bool>)]
    pub repair: Option<LenientBool>,
}

impl GetMessagesParams {
    /// Returns the format of the response.
    ///
    /// # Errors
    /// Returns 400 if the format is unknown.
    pub fn target(&self) -> Result<Format> {
        parse_format(self.format.as_deref().unwrap_or_default())
            .ok_or_else(|| Error::invalid_field("format", "must be one of acontext, openai, anthropic or gemini"))
    }

    /// Returns the choices that change how messages are written.
    ///
    /// # Errors
    /// Returns 400 if a choice is unknown.
    pub fn render_options(&self) -> Result<RenderOptions> {
        let is_set = |value: Option<&str>, name: &str, allowed: &str| match value {
            None | Some("") => Ok(false),
            Some(value) if value == allowed => Ok(true),
            Some(_) => Err(Error::invalid_field(name, format_args!("must be {allowed}"))),
        };
        Ok(RenderOptions {
            with_reasoning_content: is_set(self.thoughts.as_deref(), "thoughts", "reasoning_content")?,
            with_native_system: is_set(self.system_messages.as_deref(), "system_messages", "native")?,
            with_placeholder_signatures: is_set(self.signatures.as_deref(), "signatures", "placeholder")?,
            with_repair: self.repair.is_some_and(LenientBool::is_set),
        })
    }

    /// Returns the page to read.
    ///
    /// # Errors
    /// Returns 400 if the limit or the cursor is invalid.
    pub fn page_request(&self, ctx: &Messages, target: Format) -> Result<MessagePageRequest> {
        let limit = match self.limit.and_then(LenientInt::get) {
            None => 0,
            Some(limit) => {
                let limit = usize::try_from(limit).ok().filter(|limit| *limit <= 200);
                limit.ok_or_else(|| Error::invalid_field("limit", "must be from 0 to 200"))?
            }
        };
        let max_bytes = ctx.config.limits.max_messages_bytes;
        if limit == 0 {
            let limit = ctx.config.limits.max_messages;
            return Ok(MessagePageRequest { after: None, newest_first: false, limit, max_bytes, target });
        }
        let after = match self.cursor.as_deref() {
            None | Some("") => None,
            Some(cursor) => Cursor::decode(cursor)?,
        };
        let newest_first = self.time_desc.is_some_and(LenientBool::is_set);
        Ok(MessagePageRequest { after, newest_first, limit, max_bytes, target })
    }
}
