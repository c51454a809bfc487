//! What is sealed opens where it belongs, with the key that it was sealed with, and nowhere else.

use axum::body::Body;
use axum::http::Method;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::encryption::{MARK, Things, decrypt, encrypt, large, master_key, with_model};
use crate::support::run_with;

type Change = Box<dyn Fn(&mut Vec<u8>)>;

#[tokio::test]
async fn a_link_has_the_key_of_its_file_alone() {
    run_with(with_model(), async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        client.upload(&disk, "/", "a.txt", "the first").await;
        client.upload(&disk, "/", "b.txt", "the second").await;
        let link = async |name: &str| {
            let answer = client.get(&format!("/api/v1/disk/{disk}/artifact?file_path={name}")).await;
            answer.assert_status(200);
            let url = answer.data()["public_url"].as_str().unwrap().to_owned();
            url[url.find("/api/").unwrap()..].to_owned()
        };
        let open = async |link: &str| app.client().get(link).await;
        let before = link("a.txt").await;
        assert_eq!(open(&before).await.text(), "the first");
        encrypt(&app, &client).await;
        open(&before).await.assert_refused(404, "material not found");
        let head = app.client().request(Method::HEAD, &before).body(Body::empty()).unwrap();
        app.client().send(head).await.assert_status(404);
        let (first, second) = (link("a.txt").await, link("b.txt").await);
        assert_eq!(link("a.txt").await, first, "the same link within the hour");
        let opened = open(&first).await;
        assert_eq!((opened.text().as_str(), opened.header("content-length")), ("the first", "9"));
        assert_eq!(open(&second).await.text(), "the second");
        let range = app.client().get_with(&second, "range", "bytes=4-").await;
        assert_eq!((range.status.as_u16(), range.text().as_str()), (206, "second"));
        // Neither key is in the link as it is, nor the project's.
        let token = URL_SAFE_NO_PAD.decode(first.rsplit('/').next().unwrap()).unwrap();
        assert!(!token.windows(32).any(|window| window == master_key(&client)));
        // The key of the one opens the other no more than any other key.
        let exchange = async || {
            app.execute("update blobs b set sha256 = 'x' || o.sha256 from blobs o where o.id <> b.id").await;
            app.execute("update blobs set sha256 = substring(sha256 from 2)").await;
        };
        exchange().await;
        let exchanged = open(&first).await;
        exchanged.assert_refused(404, "material not found");
        exchange().await;
        decrypt(&app, &client).await;
        assert_eq!(open(&first).await.text(), "the first");
    })
    .await;
}

#[tokio::test]
async fn links_in_lists_of_messages_open_sealed_files() {
    run_with(with_model(), async |app| {
        let client = app.project().await;
        let things = Things::make(&client).await;
        encrypt(&app, &client).await;
        let page = client.messages(&things.session, "format=acontext").await;
        let urls = page["public_urls"].as_object().unwrap();
        assert_eq!(urls.len(), 1);
        let url = urls.values().next().unwrap()["url"].as_str().unwrap();
        let opened = app.client().get(&url[url.find("/api/").unwrap()..]).await;
        assert_eq!(opened.text(), format!("sent: {MARK}"));
    })
    .await;
}

#[tokio::test]
async fn a_message_that_was_changed_says_so_and_the_others_are_shown() {
    run_with(with_model(), async |app| {
        let (client, other) = (app.project().await, app.project().await);
        let session = client.new_session().await;
        let mut ids = Vec::new();
        for text in ["one", "two", "three"] {
            ids.push(client.say_text(&session, text).await);
        }
        encrypt(&app, &client).await;
        encrypt(&app, &other).await;
        let theirs = other.new_session().await;
        other.say_text(&theirs, "of another project").await;
        let texts = async |format: &str| -> Vec<String> {
            let page = client.messages(&session, &format!("format={format}")).await;
            let text = |item: &Value| {
                let said = item.pointer("/parts/0/text").or_else(|| item.pointer("/content/0/text"));
                said.unwrap_or(&item["content"]).as_str().unwrap().to_owned()
            };
            page["items"].as_array().unwrap().iter().map(text).collect()
        };
        let damaged = "This message cannot be shown: what is stored of it was damaged.";
        let set = async |sql: &'static str, id: &str| {
            sqlx::query(sql).bind(id.parse::<uuid::Uuid>().unwrap()).execute(&*app.app.db).await.unwrap();
        };
        let kept = "create table kept as select * from messages";
        app.execute(kept).await;
        for change in [
            "update messages set content = set_byte(content, 120, get_byte(content, 120) # 1) where id = $1",
            "update messages set content = substring(content for 100) where id = $1",
            "update messages set content = '' where id = $1",
            "update messages set content = (select content from kept where id <> $1 order by created_at limit 1) where id = $1",
            "update messages set content = (select content from kept order by created_at desc limit 1) where id = $1",
            "update messages set (content, encrypted_as) = (select content, encrypted_as from kept order by created_at desc limit 1) where id = $1",
        ] {
            set(change, &ids[1]).await;
            for format in ["acontext", "openai", "anthropic", "gemini"] {
                assert_eq!(texts(format).await, ["one", damaged, "three"], "{format} after {change}");
            }
            set("update messages m set (content, encrypted_as) = (k.content, k.encrypted_as) from kept k where k.id = m.id and m.id = $1", &ids[1])
                .await;
        }
        assert_eq!(texts("openai").await, ["one", "two", "three"]);
        // What does not open does not keep the rest from being opened.
        set("update messages set content = '\\x01' where id = $1", &ids[1]).await;
        client.post("/api/v1/project/decrypt", json!({})).await.assert_status(200);
        app.drain_jobs().await;
        let said = client.get("/api/v1/project/encryption").await.data();
        assert_eq!(said["error"], format!("message {} is damaged and stays as it is", ids[1]));
        assert_eq!((&said["state"], &said["done"], &said["total"]), (&json!("idle"), &json!(2), &json!(3)));
        assert_eq!(texts("openai").await, ["one", damaged, "three"]);
        // When it is mended, it can be tried again.
        set("update messages m set content = k.content from kept k where k.id = m.id and m.id = $1", &ids[1]).await;
        decrypt(&app, &client).await;
        assert_eq!(texts("openai").await, ["one", "two", "three"]);
    })
    .await;
}

#[tokio::test]
async fn a_file_that_was_changed_says_so_and_the_others_are_read() {
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
        let damaged = |answer: crate::support::client::Answer| {
            answer.assert_refused(500, "is damaged");
            assert_eq!(answer.json()["error"], "CONTENT_CORRUPT");
        };
        let (a, b) = (key_of("a.txt").await, key_of("b.txt").await);
        let (whole, of_b) = (app.blobs.read_object(&a), app.blobs.read_object(&b));
        let changes: [(&str, Change); 4] = [
            ("a bit", Box::new(|object| object[3] ^= 1)),
            ("cut off", Box::new(|object| object.truncate(10))),
            ("nothing left", Box::new(Vec::clear)),
            ("another file's", Box::new(move |object| object.clone_from(&of_b))),
        ];
        for (what, change) in changes {
            app.blobs.change(&a, change);
            for path in ["/download?file_path=a.txt", "?file_path=a.txt"] {
                damaged(client.get(&format!("{artifact}{path}")).await);
            }
            assert_eq!(client.download(&disk, "b.txt").await.unwrap(), b"needle b", "{what}");
            let found = client.get(&format!("{artifact}/grep?query=needle")).await.data();
            assert_eq!((found.as_array().unwrap().len(), &found[0]["filename"]), (1, &json!("b.txt")), "{what}");
            app.blobs.change(&a, |object| object.clone_from(&whole));
        }
        // Rows that name each other's objects, with their keys.
        let exchange = "update blobs b set object_key = 'x' || o.object_key, wrapped_key = o.wrapped_key from blobs o
             where o.id <> b.id and o.size = b.size";
        app.execute(exchange).await;
        app.execute("update blobs set object_key = substring(object_key from 2) where object_key like 'x%'").await;
        damaged(client.get(&format!("{artifact}/download?file_path=a.txt")).await);
        app.execute(exchange).await;
        app.execute("update blobs set object_key = substring(object_key from 2) where object_key like 'x%'").await;
        assert_eq!(client.download(&disk, "a.txt").await.unwrap(), b"needle a");
        // What was cut off of a large one is missed where it is.
        let large_key = key_of("large.txt").await;
        app.blobs.change(&large_key, |object| object.truncate(300_000));
        let range = client.get_with(&format!("{artifact}/download?file_path=large.txt"), "range", "bytes=0-99").await;
        assert_eq!((range.status.as_u16(), range.text().as_str()), (206, &large()[..100]));
        damaged(client.get_with(&format!("{artifact}/download?file_path=large.txt"), "range", "bytes=300000-").await);
        // It does not keep the others from being opened.
        client.post("/api/v1/project/decrypt", json!({})).await.assert_status(200);
        app.drain_jobs().await;
        let said = client.get("/api/v1/project/encryption").await.data();
        assert!(said["error"].as_str().unwrap().starts_with("the file with SHA-256"), "{said}");
        assert_eq!(client.download(&disk, "b.txt").await.unwrap(), b"needle b");
    })
    .await;
}

#[tokio::test]
async fn a_file_whose_key_was_changed_does_not_end_a_search() {
    run_with(with_model(), async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        client.upload(&disk, "/", "a.txt", "needle a").await;
        client.upload(&disk, "/", "b.txt", "needle b").await;
        encrypt(&app, &client).await;
        let a = "select blob_id from current_artifacts where filename = 'a.txt'";
        let blob: uuid::Uuid = app.value(a).await;
        let change = sqlx::query("update blobs set wrapped_key = '\\x00' where id = $1").bind(blob);
        change.execute(&*app.app.db).await.unwrap();
        let artifact = format!("/api/v1/disk/{disk}/artifact");
        client.get(&format!("{artifact}/download?file_path=a.txt")).await.assert_refused(500, "is damaged");
        let found = client.get(&format!("{artifact}/grep?query=needle")).await.data();
        assert_eq!((found.as_array().unwrap().len(), &found[0]["filename"]), (1, &json!("b.txt")));
    })
    .await;
}

#[tokio::test]
async fn an_object_as_acontext_writes_it_is_read() {
    run_with(with_model(), async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        encrypt(&app, &client).await;
        client.upload(&disk, "/", "a.txt", "hello").await;
        let key: String = app.value("select object_key from blobs").await;
        let (dek, nonce) =
            ([0x11; 32], |from: u8| -> [u8; 12] { std::array::from_fn(|n| from + u8::try_from(n).unwrap()) });
        let object = sealed(&dek, nonce(0), b"hello");
        assert_eq!(hex::encode(&object), "000102030405060708090a0b7b86da7f149b2df6f001f922f211f02f27864bd48b");
        app.blobs.change(&key, |bytes| *bytes = object);
        let wrapped = sealed(&master_key(&client), nonce(100), &dek);
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

/// Nonce, ciphertext and tag.
fn sealed(key: &[u8; 32], nonce: [u8; 12], plain: &[u8]) -> Vec<u8> {
    use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).unwrap());
    let mut text = plain.to_vec();
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut text).unwrap();
    [nonce.to_vec(), text].concat()
}
