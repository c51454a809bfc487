//! An S3 server in this process. It uses HTTP, so that tests cover the requests that the client sends.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::TryStreamExt;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use s3s::auth::{S3Auth, SecretKey};
use s3s::dto::{
    DeleteObjectInput, DeleteObjectOutput, GetObjectInput, GetObjectOutput, HeadBucketInput, HeadBucketOutput,
    ListObjectsV2Input, ListObjectsV2Output, PutObjectInput, PutObjectOutput, StreamingBlob,
};
use s3s::service::S3ServiceBuilder;
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

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

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        check_bucket(&request.input.bucket)?;
        Ok(S3Response::new(ListObjectsV2Output::default()))
    }
}

/// The secret keys by access key.
#[derive(Clone)]
struct Keys(Arc<Mutex<HashMap<String, String>>>);

#[async_trait::async_trait]
impl S3Auth for Keys {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        let secret = self.0.lock().unwrap().get(access_key).cloned();
        secret.map(SecretKey::from).ok_or_else(|| s3_error!(InvalidAccessKeyId))
    }
}

/// The server. It accepts [`ACCESS_KEY`] until [`S3Server::set_keys`] is called.
pub struct S3Server {
    /// The URL of the endpoint.
    pub url: String,
    keys: Keys,
    session_tokens: Arc<Mutex<BTreeSet<String>>>,
    _server: JoinSet<()>,
}

impl S3Server {
    pub async fn start() -> Self {
        let keys = Keys(Arc::default());
        let mut builder = S3ServiceBuilder::new(Store::default());
        builder.set_auth(keys.clone());
        let service = builder.build();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let session_tokens = Arc::<Mutex<BTreeSet<String>>>::default();
        let recorded_tokens = Arc::clone(&session_tokens);
        let mut server = JoinSet::new();
        server.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (service, recorded_tokens) = (service.clone(), Arc::clone(&recorded_tokens));
                let respond = service_fn(move |request: Request<Incoming>| {
                    if let Some(token) = request.headers().get("x-amz-security-token") {
                        recorded_tokens.lock().unwrap().insert(token.to_str().unwrap().to_owned());
                    }
                    Service::call(&service, request)
                });
                connections.spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), respond));
            }
        });
        let server = Self { url, keys, session_tokens, _server: server };
        server.set_keys([(ACCESS_KEY, SECRET_KEY)]);
        server
    }

    /// Replaces the keys that the server accepts.
    pub fn set_keys<const N: usize>(&self, keys: [(&str, &str); N]) {
        *self.keys.0.lock().unwrap() = keys.map(|(access, secret)| (access.to_owned(), secret.to_owned())).into();
    }

    /// Returns the session tokens of all requests.
    pub fn session_tokens(&self) -> Vec<String> {
        self.session_tokens.lock().unwrap().iter().cloned().collect()
    }
}
