//! Ten thousand files of English-like text, on a server and beside it in a folder, byte for byte the same.

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
use crate::load::{Plan, Source, drive};
use crate::server::{Server, new_folder};

const DIRECTORIES: usize = 100;
/// A word that is nowhere, and one that is in some files.
pub const NOWHERE: &str = "quetzalcoatlus";
pub const SOMEWHERE: &str = "zirconium";
/// How many files have it.
pub const WITH_WORD: usize = 5;
/// What the regular expression looks for: in some files, and words that only begin like it in all.
pub const NUMBERED: &str = r"\b(foo|bar)\w+\d+";
pub const WITH_NUMBERED: usize = 7;
const LENGTHS: std::ops::Range<usize> = 18_000..22_000;

/// The files on a server's disk and in a folder.
pub struct Corpus {
    pub server: Server,
    pub disk: String,
    pub folder: PathBuf,
    pub files: usize,
    pub bytes: u64,
}

impl Corpus {
    /// Makes them.
    pub async fn make(bench: &Bench) -> anyhow::Result<Self> {
        let server = Server::start(bench, "corpus").await?;
        let disk = server.client().await?.new_disk().await?;
        let folder = new_folder(&bench.folder, "texts")?;
        let texts = texts(bench);
        let files = texts.len();
        for (number, text) in texts.iter().enumerate() {
            write(&folder, number, text)?;
        }
        let bytes = texts.iter().map(|text| text.len() as u64).sum();
        upload(&server, &disk, texts, |request| request).await?;
        Ok(Self { server, disk, folder, files, bytes })
    }
}

/// The texts of the files.
pub fn texts(bench: &Bench) -> Vec<Bytes> {
    let files = DIRECTORIES * bench.pick(100, 5);
    (0..files).map(|number| text(number, files)).collect()
}

fn write(folder: &Path, number: usize, text: &Bytes) -> anyhow::Result<()> {
    let (directory, name) = place(number);
    let directory = folder.join(directory.trim_matches('/'));
    fs::create_dir_all(&directory)?;
    Ok(fs::write(directory.join(name), text)?)
}

/// Stores the texts as files of a disk, with requests that are changed as `asks` says.
pub async fn upload(
    server: &Server,
    disk: &str,
    texts: Vec<Bytes>,
    asks: impl Fn(Request) -> Request + Clone + Send + 'static,
) -> anyhow::Result<()> {
    let (count, texts) = (Arc::new(AtomicUsize::new(0)), Arc::new(texts));
    let stored = drive(server.address, Plan::to_the_end(16), |_| -> Source {
        let (count, texts, disk, asks) = (Arc::clone(&count), Arc::clone(&texts), disk.to_owned(), asks.clone());
        Box::new(move || {
            let number = count.fetch_add(1, Ordering::Relaxed);
            let (directory, name) = place(number);
            let content = [texts.get(number)?.clone(), Bytes::new()];
            Some(asks(Request::upload("PUT", &disk, &directory, &name, content)))
        })
    })
    .await;
    ensure!(stored.failed() == 0, "files could not be stored: {:?}", stored.failures());
    Ok(())
}

/// The directory and the name of a file.
fn place(number: usize) -> (String, String) {
    let kind = if number.is_multiple_of(3) { "md" } else { "txt" };
    (format!("/dir{}/", number % DIRECTORIES), format!("notes-{:05}.{kind}", number / DIRECTORIES))
}

/// The text of a file, the same in each run.
fn text(number: usize, files: usize) -> Bytes {
    let mut random = StdRng::seed_from_u64(number as u64);
    let words: Vec<&str> = WORDS.split_whitespace().collect();
    let length = random.random_range(LENGTHS);
    let mut text = String::with_capacity(length + 64);
    let is_one_of = |some: usize| number % (files / some) == files / some / 2 && number / (files / some) < some;
    let (mut word_due, mut numbered_due) = (is_one_of(WITH_WORD), is_one_of(WITH_NUMBERED));
    while text.len() < length {
        let half = text.len() > length / 2;
        sentence(&mut random, &words, &mut text);
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

/// Text of at least that length, the same for the same seed: sentences, quotation marks and line breaks.
pub fn prose(seed: u64, length: usize) -> String {
    let mut random = StdRng::seed_from_u64(seed);
    let words: Vec<&str> = WORDS.split_whitespace().collect();
    let mut text = String::with_capacity(length + 256);
    while text.len() < length {
        let quoted = random.random_bool(0.1);
        text.push_str(if quoted { "\"" } else { "" });
        sentence(&mut random, &words, &mut text);
        text.push_str(if quoted { ".\"" } else { "." });
        text.push_str(if random.random_bool(0.2) { "\n" } else { " " });
    }
    text
}

/// Without its full stop.
fn sentence(random: &mut StdRng, words: &[&str], text: &mut String) {
    for at in 0..random.random_range(6..16) {
        // Squared, so that the first words come far more often than the last, as in a language.
        let pick = random.random::<f64>() * random.random::<f64>();
        let word = words[index(pick, words.len())];
        if at == 0 {
            text.extend(word.chars().next().map(|first| first.to_ascii_uppercase()));
            text.push_str(&word[1..]);
        } else {
            text.push(' ');
            text.push_str(word);
        }
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a small number")]
fn index(share: f64, of: usize) -> usize {
    (share * crate::load::real(of as u64)) as usize
}

const WORDS: &str = "the of and to a in is that it was for on are as with his they at be this from have or by one had not but \
    what all were when we there can an your which their said if do will each about how up out them then she many some so \
    these would other into has more her two like him see time could no make than first been its who now people my made over \
    did down only way find use may water long little very after words called just where most know get through back much go \
    good new write our used me man too any day same right look think also around another came come work three word must \
    because does part even place well such here take why things help put years different away again off went old number \
    great tell men say small every found still between name should home big give air line set own under read last never us \
    left end along while might next sound below saw something thought both few those always looked show large often together \
    asked house world going want school important until form food keep children feet land side without boy once animal life \
    enough took sometimes four head above kind began almost live page got earth need far hand high year mother light parts \
    country father let night following picture being study second soon story since white ever paper hard near sentence better \
    best across during today others however sure means knew try told young miles sun ways thing whole hear example heard \
    several change answer room sea against top turned learn point city play toward five using himself usually foot barn bark \
    memory agent session message token latency throughput database transaction durable checkpoint football barrier bargain";
