# The server for a Postgres and an object store that run elsewhere: see docker-compose.yml, which brings both.
# (The private Postgres of `make run` is for machines without containers, so none is in this image.)

FROM rust:1.95-bookworm AS build
WORKDIR /build
# Queries are checked against the committed .sqlx: there is no database here.
ENV SQLX_OFFLINE=true
COPY Cargo.toml Cargo.lock build.rs ./
COPY .cargo .cargo
COPY .sqlx .sqlx
COPY migrations migrations
COPY src src
# Not built here, but the manifest names them.
COPY bench bench
COPY tests/it tests/it
# Crates and what was built of them are kept between builds. The sources are touched because cargo goes by their
# times, and an older checkout would otherwise pass for built. The program is copied out of the kept folder.
RUN --mount=type=cache,sharing=locked,target=/usr/local/cargo/registry \
    --mount=type=cache,sharing=locked,target=/build/target \
    touch src/lib.rs src/main.rs \
    && cargo build --release --locked \
    && cp target/release/acontextd /acontextd

FROM debian:bookworm-slim
# For TLS to the database, the object store and model providers.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 10001 --no-create-home --home-dir /var/lib/acontextd --shell /usr/sbin/nologin acontextd \
    && install --directory --owner=acontextd --group=acontextd --mode=0700 /var/lib/acontextd
COPY --from=build /acontextd /usr/local/bin/acontextd
USER acontextd
# Inside a container the loopback address reaches nobody. On any other the server wants a token and a pepper of its own.
ENV ACONTEXTD_HOST=0.0.0.0 ACONTEXTD_DATA_DIR=/var/lib/acontextd
EXPOSE 8029
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["acontextd", "health"]
ENTRYPOINT ["acontextd"]
