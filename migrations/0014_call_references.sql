-- The tool calls in a message of an assistant, [{"id", "name"}], and the results in a message of a user, [{"result_of": id}], in
-- every format; an encrypted JSON string if the message is encrypted. Null if there are none. Until this version, the column had
-- only calls of Gemini models without a result.
alter table messages rename column pending_calls to call_references;
alter index messages_pending_calls_idx rename to messages_call_references_idx;
