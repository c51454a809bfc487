//! Encrypted data can be decrypted only in its own place and with its own key. Modified data is reported as corrupt.

use axum::body::Body;
use axum::http::Method;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::encryption::{Fixtures, MARK, decrypt, encrypt, large, master_key, with_model};
use crate::support::run_with;

type Change = Box<dyn Fn(&mut Vec<u8>)>;

#[tokio::test]
async fn a_link_contains_only_the_key_of_its_file() {
    run_with(with_model(), async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        client.upload(&disk, "/", "a.txt", "the first").await;
        client.upload(&disk, "/", "b.txt", "the second").await;
        let link = async |name: &str| {
            let response = client.get(&format!("/api/v1/disk/{disk}/artifact?file_path={name}")).await;
            response.assert_status(200);
            let url = response.data()["public_url"].as_str().unwrap().to_owned();
            url[url.find("/api/").unwrap()..].to_owned()
        };
        let fetch = async |link: &str| app.client().get(link).await;
        let before = link("a.txt").await;
        assert_eq!(fetch(&before).await.text(), "the first");
        encrypt(&app, &client).await;
        fetch(&before).await.assert_error(404, "material not found");
        let head = app.client().request(Method::HEAD, &before).body(Body::empty()).unwrap();
        app.client().send(head).await.assert_status(404);
        let (first, second) = (link("a.txt").await, link("b.txt").await);
        assert_eq!(link("a.txt").await, first, "the same link within the hour");
        let response = fetch(&first).await;
        assert_eq!((response.text().as_str(), response.header("content-length")), ("the first", "9"));
        assert_eq!(fetch(&second).await.text(), "the second");
        let range = app.client().get_with(&second, "range", "bytes=4-").await;
        assert_eq!((range.status.as_u16(), range.text().as_str()), (206, "second"));
        // The token does not contain the master key.
        let token = URL_SAFE_NO_PAD.decode(first.rsplit('/').next().unwrap()).unwrap();
        assert!(!token.windows(32).any(|window| window == master_key(&client)));
        // The key of one file does not decrypt the other file.
        let exchange = async || {
            app.execute("update blobs b set sha256 = 'x' || o.sha256 from blobs o where o.id <> b.id").await;
            app.execute("update blobs set sha256 = substring(sha256 from 2)").await;
        };
        exchange().await;
        let exchanged = fetch(&first).await;
        exchanged.assert_error(404, "material not found");
        exchange().await;
        decrypt(&app, &client).await;
        assert_eq!(fetch(&first).await.text(), "the first");
    })
    .await;
}

#[tokio::test]
async fn links_in_message_lists_serve_encrypted_files() {
    run_with(with_model(), async |app| {
        let client = app.project().await;
        let fixtures = Fixtures::make(&client).await;
        encrypt(&app, &client).await;
        let page = client.messages(&fixtures.session, "format=acontext").await;
        let urls = page["public_urls"].as_object().unwrap();
        assert_eq!(urls.len(), 1);
        let url = urls.values().next().unwrap()["url"].as_str().unwrap();
        let response = app.client().get(&url[url.find("/api/").unwrap()..]).await;
        assert_eq!(response.text(), format!("sent: {MARK}"));
    })
    .await;
}

#[tokio::test]
async fn a_modified_message_is_reported_and_others_are_returned() {
    run_with(with_model(), async |app| {
        let (client, other) = (app.project().await, app.project().await);
        let session = client.new_session().await;
        let mut ids = Vec::new();
        for text in ["one", "two", "three"] {
            ids.push(client.store_text(&session, text).await);
        }
        encrypt(&app, &client).await;
        encrypt(&app, &other).await;
        let other_session = other.new_session().await;
        other.store_text(&other_session, "of another project").await;
        let texts = async |format: &str| -> Vec<String> {
            let page = client.messages(&session, &format!("format={format}")).await;
            let text = |item: &Value| {
                let text = item.pointer("/parts/0/text").or_else(|| item.pointer("/content/0/text"));
                text.unwrap_or(&item["content"]).as_str().unwrap().to_owned()
            };
            page["items"].as_array().unwrap().iter().map(text).collect()
        };
        let corrupt = "This message cannot be displayed because its stored content is corrupt.";
        let set = async |sql: &'static str, id: &str| {
            sqlx::query(sql).bind(id.parse::<uuid::Uuid>().unwrap()).execute(&*app.app.db).await.unwrap();
        };
        app.execute("create table backup as select * from messages").await;
        for change in [
            "update messages set content = set_byte(content, 120, get_byte(content, 120) # 1) where id = $1",
            "update messages set content = substring(content for 100) where id = $1",
            "update messages set content = '' where id = $1",
            "update messages set content = (select content from backup where id <> $1
             order by created_at limit 1) where id = $1",
            "update messages set content = (select content from backup order by created_at desc limit 1) where id = $1",
            "update messages set (content, encrypted_as) = (select content, encrypted_as from backup
             order by created_at desc limit 1) where id = $1",
        ] {
            set(change, &ids[1]).await;
            for format in ["acontext", "openai", "anthropic", "gemini"] {
                assert_eq!(texts(format).await, ["one", corrupt, "three"], "{format} after {change}");
            }
            let restore = "update messages m set (content, encrypted_as) = (b.content, b.encrypted_as) from backup b
                 where b.id = m.id and m.id = $1";
            set(restore, &ids[1]).await;
        }
        assert_eq!(texts("openai").await, ["one", "two", "three"]);
        // A corrupt message does not prevent the conversion of the others.
        set("update messages set content = '\\x01' where id = $1", &ids[1]).await;
        client.post("/api/v1/project/decrypt", json!({})).await.assert_status(200);
        app.drain_jobs().await;
        let status = client.get("/api/v1/project/encryption").await.data();
        assert_eq!(status["error"], format!("message {} is corrupt and was left unchanged", ids[1]));
        assert_eq!((&status["state"], &status["done"], &status["total"]), (&json!("idle"), &json!(2), &json!(3)));
        assert_eq!(texts("openai").await, ["one", corrupt, "three"]);
        // After the message is restored, the conversion can be repeated.
        set("update messages m set content = k.content from backup k where k.id = m.id and m.id = $1", &ids[1]).await;
        decrypt(&app, &client).await;
        assert_eq!(texts("openai").await, ["one", "two", "three"]);
    })
    .await;
}

#[tokio::test]
async fn a_modified_file_is_reported_and_others_can_be_read() {
    run_with(with_model(), async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        for (name, content) in [("a.txt", "needle a"), ("b.txt", "needle b")] {
            client.upload(&disk, "/", name, content).await;
        }
        client.upload(&disk, "/", "large.txt", large()).await;
        encrypt(&app, &client).await;
        let artifact = format!("/api/v1/disk/{disk}/artifact");
        let key_of = async |name: &'static str| -> String {
            let key = "select object_key from current_artifacts where filename = $1";
            sqlx::query_scalar(key).bind(name).fetch_one(&*app.app.db).await.unwrap()
        };
        let assert_corrupt = |response: crate::support::client::TestResponse| {
            response.assert_error(500, "is corrupt");
            assert_eq!(response.json()["error"], "CONTENT_CORRUPT");
        };
        let (a, b) = (key_of("a.txt").await, key_of("b.txt").await);
        let (original, object_of_b) = (app.blobs.read_object(&a), app.blobs.read_object(&b));
        let changes: [(&str, Change); 4] = [
            ("a changed bit", Box::new(|object| object[3] ^= 1)),
            ("truncated", Box::new(|object| object.truncate(10))),
            ("empty", Box::new(Vec::clear)),
            ("the object of another file", Box::new(move |object| object.clone_from(&object_of_b))),
        ];
        for (what, change) in changes {
            app.blobs.tamper(&a, change);
            for path in ["/download?file_path=a.txt", "?file_path=a.txt"] {
                assert_corrupt(client.get(&format!("{artifact}{path}")).await);
            }
            assert_eq!(client.download(&disk, "b.txt").await.unwrap(), b"needle b", "{what}");
            let matches = client.get(&format!("{artifact}/grep?query=needle")).await.data();
            assert_eq!((matches.as_array().unwrap().len(), &matches[0]["filename"]), (1, &json!("b.txt")), "{what}");
            app.blobs.tamper(&a, |object| object.clone_from(&original));
        }
        // Two rows that refer to each other's object and contain its key.
        let exchange = "update blobs b set object_key = 'x' || o.object_key, wrapped_key = o.wrapped_key from blobs o
             where o.id <> b.id and o.size = b.size";
        app.execute(exchange).await;
        app.execute("update blobs set object_key = substring(object_key from 2) where object_key like 'x%'").await;
        assert_corrupt(client.get(&format!("{artifact}/download?file_path=a.txt")).await);
        app.execute(exchange).await;
        app.execute("update blobs set object_key = substring(object_key from 2) where object_key like 'x%'").await;
        assert_eq!(client.download(&disk, "a.txt").await.unwrap(), b"needle a");
        // A truncated large file can be read up to the missing part.
        let large_key = key_of("large.txt").await;
        app.blobs.tamper(&large_key, |object| object.truncate(300_000));
        let range = client.get_with(&format!("{artifact}/download?file_path=large.txt"), "range", "bytes=0-99").await;
        assert_eq!((range.status.as_u16(), range.text().as_str()), (206, &large()[..100]));
        assert_corrupt(
            client.get_with(&format!("{artifact}/download?file_path=large.txt"), "range", "bytes=300000-").await,
        );
        // Corrupt files do not prevent the conversion of the others.
        client.post("/api/v1/project/decrypt", json!({})).await.assert_status(200);
        app.drain_jobs().await;
        let status = client.get("/api/v1/project/encryption").await.data();
        assert!(status["error"].as_str().unwrap().starts_with("the file with SHA-256"), "{status}");
        assert_eq!(client.download(&disk, "b.txt").await.unwrap(), b"needle b");
    })
    .await;
}

#[tokio::test]
async fn a_file_with_a_modified_key_does_not_end_a_search() {
    run_with(with_model(), async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        client.upload(&disk, "/", "a.txt", "needle a").await;
        client.upload(&disk, "/", "b.txt", "needle b").await;
        encrypt(&app, &client).await;
        let blob_of_a = "select blob_id from current_artifacts where filename = 'a.txt'";
        let blob: uuid::Uuid = app.fetch_scalar(blob_of_a).await;
        let change = sqlx::query("update blobs set wrapped_key = '\\x00' where id = $1").bind(blob);
        change.execute(&*app.app.db).await.unwrap();
        let artifact = format!("/api/v1/disk/{disk}/artifact");
        client.get(&format!("{artifact}/download?file_path=a.txt")).await.assert_error(500, "is corrupt");
        let matches = client.get(&format!("{artifact}/grep?query=needle")).await.data();
        assert_eq!((matches.as_array().unwrap().len(), &matches[0]["filename"]), (1, &json!("b.txt")));
    })
    .await;
}

#[tokio::test]
async fn an_object_that_acontext_encrypted_can_be_read() {
    run_with(with_model(), async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        encrypt(&app, &client).await;
        client.upload(&disk, "/", "a.txt", "hello").await;
        let key: String = app.fetch_scalar("select object_key from blobs").await;
        let (dek, nonce) =
            ([0x11; 32], |from: u8| -> [u8; 12] { std::array::from_fn(|n| from + u8::try_from(n).unwrap()) });
        let object = encrypt_as_acontext(&dek, nonce(0), b"hello");
        assert_eq!(hex::encode(&object), "000102030405060708090a0b7b86da7f149b2df6f001f922f211f02f27864bd48b");
        app.blobs.tamper(&key, |bytes| *bytes = object);
        let wrapped = encrypt_as_acontext(&master_key(&client), nonce(100), &dek);
        let row = sqlx::query("update blobs set encryption_format = 'acontext', wrapped_key = $1").bind(wrapped);
        row.execute(&*app.app.db).await.unwrap();
        assert_eq!(client.download(&disk, "a.txt").await.unwrap(), b"hello");
        let path = format!("/api/v1/disk/{disk}/artifact/download?file_path=a.txt");
        assert_eq!(client.get_with(&path, "range", "bytes=1-3").await.text(), "ell");
        decrypt(&app, &client).await;
        assert_eq!(client.download(&disk, "a.txt").await.unwrap(), b"hello");
    })
    .await;
}

/// Encrypts as Acontext does. Returns nonce, ciphertext and tag.
fn encrypt_as_acontext(key: &[u8; 32], nonce: [u8; 12], plaintext: &[u8]) -> Vec<u8> {
    use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).unwrap());
    let mut ciphertext = plaintext.to_vec();
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut ciphertext).unwrap();
    [nonce.to_vec(), ciphertext].concat()
}
