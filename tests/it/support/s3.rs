//! An S3 server in this process. It uses HTTP, so that tests cover the requests that the client sends.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::TryStreamExt;
use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::dto::{
    DeleteObjectInput, DeleteObjectOutput, GetObjectInput, GetObjectOutput, HeadBucketInput, HeadBucketOutput,
    PutObjectInput, PutObjectOutput, StreamingBlob,
};
use s3s::service::S3ServiceBuilder;
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};
use tokio::net::TcpListener;

pub const BUCKET: &str = "test-bucket";
pub const ACCESS_KEY: &str = "test-access-key";
pub const SECRET_KEY: &str = "test-secret-key";

#[derive(Clone, Default)]
struct Store(Arc<Mutex<HashMap<String, Bytes>>>);

fn check_bucket(bucket: &str) -> S3Result<()> {
    if bucket == BUCKET { Ok(()) } else { Err(s3_error!(NoSuchBucket)) }
}

#[async_trait::async_trait]
impl S3 for Store {
    async fn put_object(&self, request: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let input = request.input;
        check_bucket(&input.bucket)?;
        let body = input.body.ok_or_else(|| s3_error!(IncompleteBody))?;
        let chunks: Vec<Bytes> = body.try_collect().await.map_err(|_| s3_error!(IncompleteBody))?;
        let bytes = Bytes::from(chunks.concat());
        if input.content_length.is_some_and(|length| length != i64::try_from(bytes.len()).unwrap()) {
            return Err(s3_error!(IncompleteBody));
        }
        self.0.lock().unwrap().insert(input.key, bytes);
        Ok(S3Response::new(PutObjectOutput::default()))
    }

    async fn get_object(&self, request: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let input = request.input;
        check_bucket(&input.bucket)?;
        let object = self.0.lock().unwrap().get(&input.key).cloned();
        let bytes = object.ok_or_else(|| s3_error!(NoSuchKey))?;
        let bytes = match input.range {
            Some(range) => {
                let range = range.check(bytes.len() as u64)?;
                bytes.slice(usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap())
            }
            None => bytes,
        };
        let length = i64::try_from(bytes.len()).unwrap();
        let body = StreamingBlob::wrap(futures_util::stream::iter([Ok::<_, std::io::Error>(bytes)]));
        let output = GetObjectOutput { body: Some(body), content_length: Some(length), ..Default::default() };
        Ok(S3Response::new(output))
    }

    async fn delete_object(&self, request: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        check_bucket(&request.input.bucket)?;
        self.0.lock().unwrap().remove(&request.input.key);
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn head_bucket(&self, request: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        check_bucket(&request.input.bucket)?;
        Ok(S3Response::new(HeadBucketOutput::default()))
    }
}

/// Starts the server on a free port. It ends with the runtime of the test.
#[expect(clippy::disallowed_methods, reason = "an external server, not a component of the app")]
pub async fn start() -> SocketAddr {
    let mut builder = S3ServiceBuilder::new(Store::default());
    builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
    let service = builder.build();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let connection =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service.clone());
            tokio::spawn(connection);
        }
    });
    address
}
