//! A model without a network, for trying things out: it always says the same, and never asks for anything.

use async_trait::async_trait;

use super::{Llm, LlmError, Reply, Request};

pub(super) struct Mock;

#[async_trait]
impl Llm for Mock {
    async fn complete(&self, request: Request) -> Result<Reply, LlmError> {
        let greeted = [&request.system, &request.prompt].iter().any(|text| text.contains("Simple Hello"));
        let text = if greeted { "Hello World" } else { "This is a mock answer." };
        Ok(Reply { text: text.into() })
    }
}
