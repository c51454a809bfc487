//! The messages of a server stream of the Connect protocol, in JSON. A prefix of five bytes has the flags and the length of each.

use bytes::{Buf, BytesMut};
use serde::Deserialize;
use serde_json::Value;

/// The media type of such a stream.
pub(super) const MEDIA_TYPE: &str = "application/connect+json";

/// The length of the prefix: the flags, and the length of the message in four bytes.
const PREFIX_LEN: usize = 5;
/// The flag of the last message, which has the error of the call.
const END_OF_STREAM: u8 = 0b10;
/// The maximum length of a message. A service sends the output of a command in messages of 32 KiB.
const MAX_MESSAGE_LEN: usize = 4 << 20;

/// A message of a stream.
#[derive(Debug, PartialEq)]
pub(super) enum Message {
    Data(Value),
    /// The last message. Without an error, the call has succeeded.
    End(Option<CallError>),
}

/// The error of a call.
#[derive(Debug, Deserialize, PartialEq)]
pub(super) struct CallError {
    pub(super) code: String,
    #[serde(default)]
    pub(super) message: String,
}

#[derive(Deserialize)]
struct EndOfStream {
    error: Option<CallError>,
}

/// Why a stream could not be decoded. The text completes the sentence `The response …`.
pub(super) type DecodeError = &'static str;

/// Encodes the message of a request, which is the only one.
pub(super) fn encode(message: &Value) -> Vec<u8> {
    let message = message.to_string();
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    [&[0], &length.to_be_bytes()[..], message.as_bytes()].concat()
}

/// Decodes messages from the chunks in which a stream arrives.
#[derive(Default)]
pub(super) struct Decoder {
    buffer: BytesMut,
}

impl Decoder {
    pub(super) fn push(&mut self, chunk: &[u8]) {
        self.buffer.extend_from_slice(chunk);
    }

    /// Returns the next message. `None` if it is not complete.
    ///
    /// # Errors
    /// Returns an error if the stream does not follow the protocol.
    pub(super) fn next(&mut self) -> Result<Option<Message>, DecodeError> {
        let Some(&[flags, a, b, c, d]) = self.buffer.first_chunk::<PREFIX_LEN>() else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        if length > MAX_MESSAGE_LEN {
            return Err("has a message that is too large");
        }
        if flags & !END_OF_STREAM != 0 {
            return Err("has a message with unknown flags");
        }
        if self.buffer.len() < PREFIX_LEN + length {
            return Ok(None);
        }
        self.buffer.advance(PREFIX_LEN);
        let message = self.buffer.split_to(length);
        let message = if flags == END_OF_STREAM {
            serde_json::from_slice(&message).map(|end: EndOfStream| Message::End(end.error))
        } else {
            serde_json::from_slice(&message).map(Message::Data)
        };
        message.map(Some).map_err(|_| "has a message that is not the JSON of one")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn decode(chunks: &[&[u8]]) -> Result<Vec<Message>, DecodeError> {
        let (mut decoder, mut messages) = (Decoder::default(), Vec::new());
        for chunk in chunks {
            decoder.push(chunk);
            while let Some(message) = decoder.next()? {
                messages.push(message);
            }
        }
        Ok(messages)
    }

    #[test]
    fn messages_do_not_depend_on_the_chunks() {
        let mut stream = [encode(&json!({"a": "ä"})), encode(&json!({}))].concat();
        let end = br#"{"error":{"code":"internal"}}"#;
        stream.extend([END_OF_STREAM, 0, 0, 0, u8::try_from(end.len()).unwrap()]);
        stream.extend(end);
        let error = CallError { code: "internal".into(), message: String::new() };
        let expected = [Message::Data(json!({"a": "ä"})), Message::Data(json!({})), Message::End(Some(error))];
        for length in 1..=stream.len() {
            let chunks: Vec<&[u8]> = stream.chunks(length).collect();
            assert_eq!(decode(&chunks).unwrap(), expected, "chunks of {length} bytes");
        }
        assert_eq!(decode(&[&stream[..stream.len() - 1]]).unwrap(), expected[..2]);
    }

    #[test]
    fn a_stream_of_another_protocol_is_an_error() {
        // The length is checked before the message has arrived.
        assert_eq!(decode(&[b"\x00\xff\xff\xff\xff"]), Err("has a message that is too large"));
        assert_eq!(decode(&[b"\x01\x00\x00\x00\x02"]), Err("has a message with unknown flags"));
        assert_eq!(decode(&[b"\x00\x00\x00\x00\x01x"]), Err("has a message that is not the JSON of one"));
        assert_eq!(decode(&[b"\x02\x00\x00\x00\x02{}"]), Ok(vec![Message::End(None)]));
    }
}
