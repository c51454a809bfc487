//! Ten thousand files of English-like text, stored on a server and, with identical bytes, in a local directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::ensure;
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::Bench;
use crate::http::Request;
use crate::load::{Plan, Source, run_load};
use crate::server::{Server, new_dir};

const DIRECTORIES: usize = 100;
/// A word that no file contains.
pub const ABSENT_WORD: &str = "quetzalcoatlus";
/// A word that some files contain.
pub const RARE_WORD: &str = "zirconium";
/// The number of files that contain [`RARE_WORD`].
pub const FILES_WITH_WORD: usize = 5;
/// A regular expression that matches in some files. All files contain words that only begin like a match.
pub const NUMBERED_REGEX: &str = r"\b(foo|bar)\w+\d+";
/// The number of files in which [`NUMBERED_REGEX`] matches.
pub const FILES_WITH_NUMBERED: usize = 7;
const FILE_LENGTHS: std::ops::Range<usize> = 18_000..22_000;

/// The files, on a disk of a server and in a local directory.
pub struct Corpus {
    pub server: Server,
    pub disk: String,
    pub dir: PathBuf,
    pub files: usize,
    pub bytes: u64,
}

impl Corpus {
    /// Starts the server and creates the files.
    pub async fn create(bench: &Bench) -> anyhow::Result<Self> {
        let server = Server::start(bench, "corpus").await?;
        let disk = server.client().await?.new_disk().await?;
        let dir = new_dir(&bench.dir, "texts")?;
        let texts = create_texts(bench);
        let files = texts.len();
        for (number, text) in texts.iter().enumerate() {
            write_file(&dir, number, text)?;
        }
        let bytes = texts.iter().map(|text| text.len() as u64).sum();
        upload(&server, &disk, texts, |request| request).await?;
        Ok(Self { server, disk, dir, files, bytes })
    }
}

/// Returns the texts of the files.
pub fn create_texts(bench: &Bench) -> Vec<Bytes> {
    let files = DIRECTORIES * bench.full_or_quick(100, 5);
    (0..files).map(|number| create_text(number, files)).collect()
}

fn write_file(dir: &Path, number: usize, text: &Bytes) -> anyhow::Result<()> {
    let (directory, name) = file_path(number);
    let directory = dir.join(directory.trim_matches('/'));
    fs::create_dir_all(&directory)?;
    Ok(fs::write(directory.join(name), text)?)
}

/// Stores the texts as files of a disk. `prepare` changes each request before it is sent.
pub async fn upload(
    server: &Server,
    disk: &str,
    texts: Vec<Bytes>,
    prepare: impl Fn(Request) -> Request + Clone + Send + 'static,
) -> anyhow::Result<()> {
    let (count, texts) = (Arc::new(AtomicUsize::new(0)), Arc::new(texts));
    let stored = run_load(server.address, Plan::until_exhausted(16), |_| -> Source {
        let (count, texts, disk, prepare) = (Arc::clone(&count), Arc::clone(&texts), disk.to_owned(), prepare.clone());
        Box::new(move || {
            let number = count.fetch_add(1, Ordering::Relaxed);
            let (directory, name) = file_path(number);
            let content = [texts.get(number)?.clone(), Bytes::new()];
            Some(prepare(Request::upload("PUT", &disk, &directory, &name, content)))
        })
    })
    .await;
    ensure!(stored.failed() == 0, "could not store files: {:?}", stored.failures());
    Ok(())
}

/// Returns the directory and the name of a file.
fn file_path(number: usize) -> (String, String) {
    let kind = if number.is_multiple_of(3) { "md" } else { "txt" };
    (format!("/dir{}/", number % DIRECTORIES), format!("notes-{:05}.{kind}", number / DIRECTORIES))
}

/// Returns the text of a file, which is the same in each run.
fn create_text(number: usize, files: usize) -> Bytes {
    let mut random = StdRng::seed_from_u64(number as u64);
    let words: Vec<&str> = WORDS.split_whitespace().collect();
    let length = random.random_range(FILE_LENGTHS);
    let mut text = String::with_capacity(length + 64);
    let is_one_of = |some: usize| number % (files / some) == files / some / 2 && number / (files / some) < some;
    let (mut word_due, mut numbered_due) = (is_one_of(FILES_WITH_WORD), is_one_of(FILES_WITH_NUMBERED));
    while text.len() < length {
        let half = text.len() > length / 2;
        push_sentence(&mut random, &words, &mut text);
        if half && std::mem::take(&mut word_due) {
            text.push_str(" Zirconium");
        }
        if half && std::mem::take(&mut numbered_due) {
            text.push_str(" barrel42");
        }
        text.push_str(if random.random_bool(0.3) { ".\n" } else { ". " });
    }
    text.into()
}

/// Returns text of at least the given length, with sentences, quotation marks and line breaks. The same seed gives the
/// same text.
pub fn prose(seed: u64, length: usize) -> String {
    let mut random = StdRng::seed_from_u64(seed);
    let words: Vec<&str> = WORDS.split_whitespace().collect();
    let mut text = String::with_capacity(length + 256);
    while text.len() < length {
        let quoted = random.random_bool(0.1);
        text.push_str(if quoted { "\"" } else { "" });
        push_sentence(&mut random, &words, &mut text);
        text.push_str(if quoted { ".\"" } else { "." });
        text.push_str(if random.random_bool(0.2) { "\n" } else { " " });
    }
    text
}

/// Appends a sentence without its full stop.
fn push_sentence(random: &mut StdRng, words: &[&str], text: &mut String) {
    for position in 0..random.random_range(6..16) {
        // A product of two, so that the first words are far more frequent than the last, as in a natural language.
        let share = random.random::<f64>() * random.random::<f64>();
        let word = words[scale(share, words.len())];
        if position == 0 {
            text.extend(word.chars().next().map(|first| first.to_ascii_uppercase()));
            text.push_str(&word[1..]);
        } else {
            text.push(' ');
            text.push_str(word);
        }
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a fraction of a small number")]
fn scale(share: f64, length: usize) -> usize {
    (share * crate::load::to_f64(length as u64)) as usize
}

const WORDS: &str = "the of and to a in is that it was for on are as with his they at be this from have or by one had \
    not but what all were when we there can an your which their said if do will each about how up out them then she \
    many some so these would other into has more her two like him see time could no make than first been its who now \
    people my made over did down only way find use may water long little very after words called just where most know \
    get through back much go good new write our used me man too any day same right look think also around another came \
    come work three word must because does part even place well such here take why things help put years different \
    away again off went old number great tell men say small every found still between name should home big give air \
    line set own under read last never us left end along while might next sound below saw something thought both few \
    those always looked show large often together asked house world going want school important until form food keep \
    children feet land side without boy once animal life enough took sometimes four head above kind began almost live \
    page got earth need far hand high year mother light parts country father let night following picture being study \
    second soon story since white ever paper hard near sentence better best across during today others however sure \
    means knew try rain young miles sun ways thing whole hear example heard several change answer room sea against top \
    turned learn point city play toward five using himself usually foot barn bark memory agent session message token \
    latency throughput database transaction durable checkpoint football barrier bargain";
