//! Detects formats by their signature and returns upstream's names for them.
//!
//! The crate `mimetype_detector` recognizes three times as many formats as upstream, some of them by two bytes that also occur
//! in random data. Only types in `SUPPORTED_TYPES` are returned, so a new version of the crate cannot add results.

/// The types that upstream detects by signature, except that of dBase, which the crate detects in almost any file that begins
/// with the byte 3.
const SUPPORTED_TYPES: &str = "
    application/bufr application/cbor application/dicom application/epub+zip application/fits
    application/grib application/gzip application/java-archive application/lzip application/marc
    application/msword application/ogg application/onenote application/pdf
    application/pkcs7-signature application/postscript application/tzif
    application/vnd.android.package-archive application/vnd.apache.parquet
    application/vnd.apple.mpegurl application/vnd.debian.binary-package application/vnd.fdf
    application/vnd.framemaker application/vnd.google-earth.kmz application/vnd.lotus-1-2-3
    application/vnd.microsoft.portable-executable application/vnd.ms-cab-compressed
    application/vnd.ms-excel application/vnd.ms-fontobject application/vnd.ms-htmlhelp
    application/vnd.ms-outlook application/vnd.ms-powerpoint application/vnd.ms-publisher
    application/vnd.ms-visio.drawing.main+xml application/vnd.nintendo.snes.rom
    application/vnd.oasis.opendocument.chart application/vnd.oasis.opendocument.formula
    application/vnd.oasis.opendocument.graphics
    application/vnd.oasis.opendocument.graphics-template
    application/vnd.oasis.opendocument.presentation
    application/vnd.oasis.opendocument.presentation-template
    application/vnd.oasis.opendocument.spreadsheet
    application/vnd.oasis.opendocument.spreadsheet-template
    application/vnd.oasis.opendocument.text application/vnd.oasis.opendocument.text-template
    application/vnd.openxmlformats-officedocument.presentationml.presentation
    application/vnd.openxmlformats-officedocument.spreadsheetml.sheet
    application/vnd.openxmlformats-officedocument.wordprocessingml.document
    application/vnd.rn-realmedia-vbr application/vnd.shp application/vnd.shx
    application/vnd.sqlite3 application/vnd.sun.xml.calc application/vnd.wordperfect
    application/wasm application/x-7z-compressed application/x-archive application/x-bittorrent
    application/x-bzip2 application/x-chrome-extension application/x-coredump application/x-cpio
    application/x-elf application/x-executable application/x-installshield
    application/x-java-applet application/x-mach-binary application/x-mobipocket-ebook
    application/x-ms-installer application/x-ms-reader application/x-ms-shortcut
    application/x-msaccess application/x-object application/x-ole-storage application/x-os2-hlp
    application/x-os2-inf application/x-rar-compressed application/x-rpm application/x-sharedlib
    application/x-shockwave-flash application/x-tar application/x-xar application/x-xz
    application/zip application/zlib application/zstd audio/aac audio/aiff audio/amr audio/ape
    audio/basic audio/flac audio/midi audio/mp4 audio/mpeg audio/musepack audio/ogg audio/qcelp
    audio/wav audio/x-m4a audio/x-unknown font/collection font/otf font/ttf font/woff font/woff2
    image/avif image/bmp image/bpg image/gif image/heic image/heic-sequence image/heif
    image/heif-sequence image/jp2 image/jpeg image/jpm image/jpx image/jxl image/jxr image/jxs
    image/png image/tiff image/vnd.adobe.photoshop image/vnd.djvu image/vnd.dwg image/vnd.dxf
    image/vnd.mozilla.apng image/vnd.radiance image/webp image/x-gimp-gbr image/x-gimp-pat
    image/x-icns image/x-icon image/x-xcf image/x-xpixmap model/gltf-binary video/3gpp
    video/3gpp2 video/mj2 video/mp4 video/mpeg video/ogg video/quicktime video/vnd.dvb.file
    video/webm video/x-flv video/x-m4v video/x-matroska video/x-ms-asf video/x-msvideo
";

/// Types whose files are never text: binary bytes always follow the printable characters by which the crate recognizes them.
const NEVER_TEXT: &str = "
    application/ogg application/tzif application/vnd.ms-outlook application/x-bzip2
    application/zlib audio/ape audio/flac font/collection font/otf image/bmp image/jp2 video/x-flv
";

/// Signatures that are matched before the crate is called. The crate does not detect the first three, and panics on a corrupt
/// file of the last type.
const EXTRA_SIGNATURES: [(&[u8], &str); 4] = [
    (b"\0\0\0\x0cJXL \r\n\x87\n", "image/jxl"),
    (b"\xe4\x52\x5c\x7b\x8c\xd8\xa7\x4d", "application/onenote"),
    (b"AT&TFORM", "image/vnd.djvu"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "video/x-ms-asf"),
];

/// Returns the MIME type of the format whose signature `head` has. A text can have a signature too, because some signatures are
/// printable.
pub(super) fn detect_binary(head: &[u8], is_text: bool) -> Option<&'static str> {
    if !is_text && let Some(mime) = match_extra_signature(head) {
        return Some(mime);
    }
    let mut found = Some(mimetype_detector::detect(head));
    while let Some(format) = found {
        let mime = to_upstream_mime(format.mime());
        if contains(SUPPORTED_TYPES, mime) && !(is_text && contains(NEVER_TEXT, mime)) {
            return Some(mime);
        }
        // The parent is a more general format: that of a document in a ZIP file, for example, is ZIP.
        found = format.parent();
    }
    (!is_text && has_pdf_header(head)).then_some("application/pdf")
}

fn match_extra_signature(head: &[u8]) -> Option<&'static str> {
    let (_, mime) = EXTRA_SIGNATURES.iter().find(|(signature, _)| head.starts_with(signature))?;
    Some(mime)
}

/// Returns `true` if a PDF header occurs in the first KiB. PDF allows other bytes before its header.
fn has_pdf_header(head: &[u8]) -> bool {
    let start = &head[..head.len().min(1024)];
    start.windows(5).any(|bytes| bytes == b"%PDF-")
}

/// Returns `true` if a whitespace-separated list contains a MIME type.
fn contains(mimes: &str, mime: &str) -> bool {
    mimes.split_ascii_whitespace().any(|candidate| candidate == mime)
}

/// Returns upstream's MIME type for a MIME type of the crate.
fn to_upstream_mime(mime: &'static str) -> &'static str {
    match mime {
        "application/eps" => "application/postscript",
        "application/vnd.rn-realmedia" => "application/vnd.rn-realmedia-vbr",
        "application/x-bufr" => "application/bufr",
        "application/x-dosexec" => "application/vnd.microsoft.portable-executable",
        "application/x-grib" => "application/grib",
        "application/x-java-applet; charset=binary" => "application/x-java-applet",
        "audio/x-mpegurl" => "application/vnd.apple.mpegurl",
        "audio/x-voc" => "audio/x-unknown",
        "image/x-canon-cr2" | "image/x-nikon-nef" => "image/tiff",
        "image/x-win-cursor" => "image/x-icon",
        same => same,
    }
}
