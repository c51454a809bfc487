//! Limits the number of concurrent requests to a model, of this process and of each project.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use anyhow::anyhow;
use async_trait::async_trait;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

use super::{ChatRequest, ChatResponse, Llm, LlmError};
use crate::ids::ProjectId;

/// A model with a maximum number of concurrent requests. A further request waits, until its deadline.
///
/// A request takes a permit of its project first, and then one of the process; both kinds of permits are given in the order of
/// arrival. Therefore at most `project_concurrency` requests of a project run or wait for a permit of the process, and a request
/// waits for at most this number of requests of each other project.
pub struct LimitedLlm {
    inner: Arc<dyn Llm>,
    process: Arc<Semaphore>,
    project_concurrency: usize,
    /// The permits of the projects with requests that wait or run.
    projects: Mutex<HashMap<ProjectId, Weak<Semaphore>>>,
}

/// The right to send a request. It ends when the value is dropped.
struct Permit {
    _process: OwnedSemaphorePermit,
    _project: OwnedSemaphorePermit,
}

impl LimitedLlm {
    /// Limits the requests to `inner` to `concurrency`, and those of each project to `project_concurrency`.
    pub fn new(inner: Arc<dyn Llm>, concurrency: usize, project_concurrency: usize) -> Self {
        let process = Arc::new(Semaphore::new(concurrency));
        Self { inner, process, project_concurrency, projects: Mutex::default() }
    }

    async fn acquire(&self, project: ProjectId) -> Result<Permit, AcquireError> {
        let project = self.project_semaphore(project).acquire_owned().await?;
        let process = Arc::clone(&self.process).acquire_owned().await?;
        Ok(Permit { _process: process, _project: project })
    }

    fn project_semaphore(&self, project: ProjectId) -> Arc<Semaphore> {
        let mut projects = self.projects.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(semaphore) = projects.get(&project).and_then(Weak::upgrade) {
            return semaphore;
        }
        // The permits of other projects keep their semaphores alive.
        projects.retain(|_, semaphore| semaphore.strong_count() > 0);
        let semaphore = Arc::new(Semaphore::new(self.project_concurrency));
        projects.insert(project, Arc::downgrade(&semaphore));
        semaphore
    }
}

#[async_trait]
impl Llm for LimitedLlm {
    fn model(&self) -> &str {
        self.inner.model()
    }

    fn is_configured(&self) -> bool {
        self.inner.is_configured()
    }

    async fn chat(&self, request: &ChatRequest<'_>) -> Result<ChatResponse, LlmError> {
        let permit = tokio::time::timeout_at(request.deadline, self.acquire(request.origin.project)).await;
        // The semaphores are never closed, so only the timeout can fail.
        let Ok(Ok(_permit)) = permit else {
            return Err(LlmError::Unavailable(anyhow!(
                "the request waited for other requests to the language model until its deadline: increase \
                 ACONTEXTD_LLM_CONCURRENCY or ACONTEXTD_LLM_PROJECT_CONCURRENCY if the provider allows more"
            )));
        };
        self.inner.chat(request).await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::future::join_all;
    use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
    use tokio::time::Instant;
    use uuid::Uuid;

    use super::*;
    use crate::llm::tests::request;
    use crate::llm::{AssistantMessage, CallOrigin, StopReason, TokenUsage};

    /// Reports each request with its project, and responds when the test releases it.
    struct BlockingLlm {
        started: UnboundedSender<ProjectId>,
        release: Semaphore,
    }

    #[async_trait]
    impl Llm for BlockingLlm {
        fn model(&self) -> &'static str {
            "blocking"
        }

        async fn chat(&self, request: &ChatRequest<'_>) -> Result<ChatResponse, LlmError> {
            self.started.send(request.origin.project).unwrap();
            self.release.acquire().await.unwrap().forget();
            Ok(ChatResponse {
                message: AssistantMessage::default(),
                stop_reason: StopReason::EndTurn,
                usage: TokenUsage::default(),
                model: "blocking".into(),
            })
        }
    }

    fn limited(concurrency: usize, per_project: usize) -> (LimitedLlm, Arc<BlockingLlm>, UnboundedReceiver<ProjectId>) {
        let (started, requests) = mpsc::unbounded_channel();
        let inner = Arc::new(BlockingLlm { started, release: Semaphore::new(0) });
        (LimitedLlm::new(Arc::clone(&inner) as Arc<dyn Llm>, concurrency, per_project), inner, requests)
    }

    async fn chat(llm: &LimitedLlm, project: ProjectId, deadline: Instant) -> Result<ChatResponse, LlmError> {
        let request = request(&[]);
        llm.chat(&ChatRequest { origin: CallOrigin { project, ..request.origin }, deadline, ..request }).await
    }

    fn projects() -> (ProjectId, ProjectId) {
        (ProjectId(Uuid::from_u128(1)), ProjectId(Uuid::from_u128(2)))
    }

    #[tokio::test]
    async fn the_queue_of_one_project_does_not_block_another() {
        let (llm, inner, mut started) = limited(3, 2);
        let (flooding, other) = projects();
        let deadline = Instant::now() + Duration::from_secs(10);
        let flood = join_all((0..6).map(|_| chat(&llm, flooding, deadline)));
        let other_request = async {
            assert_eq!([started.recv().await, started.recv().await], [Some(flooding); 2]);
            assert!(started.try_recv().is_err(), "a third request of the project has started");
            let (response, next) = tokio::join!(chat(&llm, other, deadline), async {
                let next = started.recv().await;
                inner.release.add_permits(100);
                next
            });
            response.unwrap();
            assert_eq!(next, Some(other));
        };
        let (responses, ()) = tokio::join!(flood, other_request);
        assert!(responses.iter().all(Result::is_ok));
        assert_eq!(llm.process.available_permits(), 3);
        // A new project replaces the entries of projects without requests.
        chat(&llm, ProjectId(Uuid::nil()), deadline).await.unwrap();
        assert_eq!(llm.projects.lock().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_request_that_waits_fails_at_its_deadline() {
        let (llm, inner, _started) = limited(1, 1);
        let (one, other) = projects();
        let now = Instant::now();
        let (first, second) = tokio::join!(chat(&llm, one, now + Duration::from_mins(1)), async {
            let result = chat(&llm, other, now + Duration::from_millis(50)).await;
            inner.release.add_permits(1);
            result
        });
        first.unwrap();
        let error = second.unwrap_err();
        assert!(matches!(error, LlmError::Unavailable(_)) && error.to_string().contains("ACONTEXTD_LLM_CONCURRENCY"));
        assert!(now.elapsed() >= Duration::from_millis(50));
    }
}
