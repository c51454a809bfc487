//! Encrypted projects.

use tracing::Level;

use super::{Calls, batch_texts, finish, flushed, in_both_formats, insert, section};
use crate::encryption::{MARK, encrypt};
use crate::support::captured_log::CapturedLog;
use crate::support::model_server::{Latch, Step};

#[tokio::test]
async fn an_encrypted_project_is_observed_without_leaving_plaintext() {
    in_both_formats(&[], async |s| {
        encrypt(&s.app, &s.client).await;
        let (log, _guard) = CapturedLog::start(Level::DEBUG);
        let key = s.client.key().trim_start_matches("sk-ac-").to_owned();
        let assert_private = async || {
            for secret in [MARK, &key] {
                let tables = s.app.tables_containing(secret).await;
                assert!(tables.is_empty(), "{tables:?}");
                assert!(!log.text().contains(secret), "{}", log.text());
            }
        };
        let text = format!("write down {MARK}");
        s.store(&[&text]).await;
        let latch = Latch::new();
        s.script([insert(0, "A").link(1, &[0, 0]).after(&latch), finish()]);
        s.while_jobs_run(async {
            latch.wait_for_requests(1).await;
            assert_private().await;
            let with_key = "select count(*) from jobs where kind = 'observe' and encrypted_kek is not null";
            assert_eq!(s.app.fetch_scalar::<i64>(with_key).await, 1, "the job has the encrypted key");
            latch.release();
            assert_eq!(s.flush().await, flushed());
        })
        .await;
        s.app.until_idle().await;
        assert_eq!(batch_texts(&s.model.take_requests()[0]), [text.as_str()]);
        assert_eq!((s.counts().await, s.links().await), ([0, 0, 1], vec![Some(1)]));
        assert_eq!(s.app.fetch_scalar::<i64>("select count(*) from jobs").await, 0, "no job keeps the key");
        assert_private().await;
        // A failure leaves the key in no job, and no content in its reason.
        s.store(&[&text]).await;
        let requests = s.observe([Step::error(400, "no")]).await;
        assert!(
            section(&requests[0], "previous-messages").contains(MARK),
            "messages before the batch are decrypted too"
        );
        let failed = "select count(*) from jobs where state = 'failed' and encrypted_kek is null";
        assert_eq!(s.app.fetch_scalar::<i64>(failed).await, 1);
        assert_private().await;
        // A flush brings the key again.
        s.script([Step::text("ok")]);
        assert_eq!(s.while_jobs_run(s.flush()).await, flushed());
        assert_private().await;
    })
    .await;
}
